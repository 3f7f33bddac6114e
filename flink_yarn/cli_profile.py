"""``flink profile``: where the time of a running job goes, operator by operator and line by line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from engine.core.config import Configuration
from engine.core.errors import ConfigError, ProgramError
from flink_yarn.cli_options import ParsedOptions
from flink_yarn.cli_rest import connect

__all__ = ["collapsed", "profile", "table"]

_NUM_SAMPLES: Final = 300
_INTERVAL_MS: Final = 10
_LINES: Final = 12


def profile(parsed: ParsedOptions, config: Configuration) -> int:
    """Print operators and the hottest lines of each vertex; -o writes all stacks for a flame graph."""
    if len(parsed.arguments) != 1 or not re.fullmatch(r"[0-9a-fA-F]{32}", parsed.arguments[0]):
        raise ProgramError("Specify the JobID of a running job, 32 hexadecimal digits, as `flink list` shows.")
    num_samples = _whole(parsed, "samples", _NUM_SAMPLES)
    interval_ms = _whole(parsed, "interval", _INTERVAL_MS)
    client = connect(config)
    job_id = parsed.arguments[0].lower()
    job = client.job(job_id)
    print(f"Job {job['name']} ({job['state']})")
    stacks: list[str] = []
    for vertex in job["vertices"]:
        operators = client.operators(job_id, vertex["id"])
        graph = client.flame_graph(job_id, vertex["id"], num_samples, interval_ms)["data"]
        print(f"\n{vertex['name']} (parallelism {vertex['parallelism']})")
        print("\n".join(table(operators)))
        print("\n".join(hottest(graph)))
        stacks += [f"{vertex['name'].replace(';', ',')};{line}" for line in collapsed(graph)]
    path = parsed.get("output")
    if path:
        with open(path, "w", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in stacks)
        print(f"\n{len(stacks)} stacks written to {path}, one a line with its count, for flamegraph.pl or speedscope.")
    return 0


def _whole(parsed: ParsedOptions, name: str, default: int) -> int:
    text = parsed.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--{name} is {text!r}; expected a whole number of at least 1.")
    return int(text)


def table(vertex: Mapping[str, Any]) -> list[str]:
    """Return the operators of a vertex as lines of text."""
    times = [int(vertex[name]) for name in ("busy-time", "idle-time", "backpressured-time")]
    total = max(1, sum(times))
    shares = ", ".join(
        f"{what} {100 * time / total:.0f} %"
        for what, time in zip(("busy", "idle", "backpressured"), times, strict=True)
    )
    lines = [f"  {shares}; {vertex['records-in']} records in {vertex['batches-in']} batches came in"]
    lines.append(f"  {'operator':32} {'records out':>12} {'batches':>9} {'a batch':>9} {'busy':>9}  tier")
    for one in vertex["operators"]:
        busy = f"{one['busy-time'] / 1000:.2f} s"
        tier = one["tier"]
        if one["fused-with"]:
            busy, tier = "(above)", f"{tier}, in the loop of {one['fused-with']}"
        lines.append(
            f"  {one['name'][:32]:32} {one['records-out']:>12} {one['batches-out']:>9} {one['batch-size']:>9.0f} "
            f"{busy:>9}  {tier}"
        )
    return lines


def collapsed(graph: Mapping[str, Any]) -> Iterator[str]:
    """Give "frame;frame;frame count" for every stack of a flame graph."""
    for frames, count in _own(graph, ()):
        yield f"{';'.join(frames)} {count}"


def _own(node: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    for child in node["children"]:
        frames = (*above, child["name"])
        own = child["value"] - sum(grandchild["value"] for grandchild in child["children"])
        if own:
            yield frames, own
        yield from _own(child, frames)


def hottest(graph: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines of code in which most samples were."""
    counts: Counter[str] = Counter()
    for frames, count in _own(graph, ()):
        counts[frames[-1]] += count
    total = max(1, graph["value"])
    return [f"  {100 * count / total:5.1f} %  {frame}" for frame, count in counts.most_common(_LINES)]
