"""Run a drawn job on columns or on rows, and say where the results differ."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from engine.common import Duration, RestartStrategies, Row, Time, Types, WatermarkStrategy
from engine.connectors.parquet_source import ParquetSource
from engine.core.errors import EngineError
from engine.core.records import RowKind
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment, aggregates, lowering, vectorise, window
from engine.datastream.connectors import DiscardingSink
from engine.datastream.functions import MapFunction
from tests.fuzz.jobs import NAMES, Job

_SECONDS_MAX = 60

__all__ = ["Rec", "difference", "plan_of", "results_of"]


def _types(job: Job) -> list[Any]:
    decimals = Types.BIG_DEC() if job.decimals else Types.LONG()
    return [Types.LONG(), Types.STRING(), Types.LONG(), Types.DOUBLE(), decimals, Types.LONG(), Types.LONG()]


@dataclass
class Rec:
    k: int
    s: str
    v: int
    f: float
    d: Any
    n: Any
    t: int


def opaque(value: Any) -> Any:
    """What no compiler sees through."""
    return eval("value", {}, {"value": value})


class FailsOnce(MapFunction):
    """Pass records on, and fail once, before the one of that number."""

    def __init__(self, marker: Path, number: int) -> None:
        self._marker, self._number, self._seen = str(marker), number, 0

    def map(self, value: Any) -> Any:
        self._seen += 1
        if self._seen == self._number and not Path(self._marker).exists():
            Path(self._marker).touch()
            raise RuntimeError("drawn to fail")
        return value


def _stream(job: Job, folder: Path, *, columns: bool) -> Any:
    env = StreamExecutionEnvironment.create_local_environment(1)
    env.set_runtime_mode(RuntimeExecutionMode.BATCH if job.batch else RuntimeExecutionMode.STREAMING)
    env.set_buffer_timeout(job.buffer_timeout_ms)
    settings = {"state.backend.type": job.backend, "execution.checkpointing.incremental": str(job.incremental).lower()}
    if job.checkpoint_ms:
        env.enable_checkpointing(job.checkpoint_ms)
        env.get_checkpoint_config().set_checkpoint_storage_dir(f"file://{folder}/checkpoints")
        env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 1))
    else:
        env.set_restart_strategy(RestartStrategies.no_restart())
    for name, value in settings.items():
        env._config.set_string(name, value)
    sources = []
    as_rows, as_tuples = Types.ROW_NAMED(list(NAMES), _types(job)), Types.TUPLE(_types(job))
    own: Any = as_rows if job.form == "row" else as_tuples if job.typed else None
    for number, table in enumerate(job.tables):
        path = folder / f"{number}.parquet"
        if columns and not job.collection:
            if not path.exists():
                pq.write_table(table, path, row_group_size=job.row_group)
            source = ParquetSource((str(path),), row_type=as_rows if job.form == "row" else None)
            sources.append(env.from_source(source, WatermarkStrategy.no_watermarks(), f"source {number}", own))
            continue
        rows: list[Any] = [tuple(record.values()) for record in table.to_pylist()]
        if job.form == "row":
            make = Row(*NAMES)
            rows = [make(*values) for values in rows]
        sources.append(env.from_collection(rows, own))
    path_of_program = str(folder / "program.py")
    text = job.text
    Path(path_of_program).write_text(text)  # functions compile from their source
    names: dict[str, Any] = {
        **{name: getattr(window, name) for name in window.__all__},
        **{name: getattr(aggregates, name) for name in aggregates.__all__},
        "Duration": Duration, "Time": Time, "WatermarkStrategy": WatermarkStrategy, "TUPLE": as_tuples,
    }  # fmt: skip
    names |= {"Rec": Rec, "opaque": opaque}
    exec(compile(text, path_of_program, "exec", dont_inherit=True), names)
    return names["program"](sources, Rec, opaque)


def _patched(job: Job, *, columns: bool) -> ExitStack:
    stack = ExitStack()
    if columns:
        stack.enter_context(patch.object(vectorise, "SEQUENCE_MIN", 1))
    else:
        stack.enter_context(patch.object(lowering, "vectorise", lambda nodes: None))
    return stack


def plan_of(job: Job, *, columns: bool) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _patched(job, columns=columns):
        stream = _stream(job, Path(folder), columns=columns)
        stream.sink_to(DiscardingSink())
        graph, _ = stream.get_execution_environment()._build("plan")
        return [f"{info.name}: {info.tier}" for vertex in graph.vertices for info in vertex.operators]


def results_of(job: Job, *, columns: bool) -> list[str]:
    """Return the results as texts that show types and kinds, or the error as the only one."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _patched(job, columns=columns):
        try:
            stream = _stream(job, Path(folder), columns=columns)
            if columns and job.fails_at:
                stream = stream.map(FailsOnce(Path(folder) / "failed", job.fails_at))
            found = _collected(stream)
        except (EngineError, TimeoutError) as error:
            return [f"failed: {str(error).splitlines()[0][:200]}"]
    if job.compare == "final":
        left: Counter[str] = Counter()
        for record in found:
            is_less = isinstance(record, Row) and record.get_row_kind() in (RowKind.UPDATE_BEFORE, RowKind.DELETE)
            left[_shown(record, kind=False)] += -1 if is_less else 1
        return sorted(f"{count} × {text}" for text, count in left.items() if count)
    shown = [_shown(record) for record in found]
    return shown if job.compare == "ordered" else sorted(shown)


def _collected(stream: Any) -> list[Any]:
    """Return the results. Raises: TimeoutError if they take longer than any job does."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no end after {_SECONDS_MAX} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS_MAX)
    try:
        return list(stream.execute_and_collect())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _shown(record: Any, *, kind: bool = True) -> str:
    if isinstance(record, Row):
        told = f"{record.get_row_kind()} " if kind else ""
        return f"{told}Row{getattr(record, '_fields', '')}{list(record)!r}"
    return repr(record)


def difference(found: list[str], expected: list[str]) -> Iterator[str]:
    """Yield lines that show where they differ, at most some."""
    if found == expected:
        return
    yield f"{len(found)} results on columns, {len(expected)} on rows"
    place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
    if place is not None:
        yield f"first at {place}: columns {found[place]}"
        yield f"{' ' * len(f'first at {place}')}: rows    {expected[place]}"
    for name, more in (("columns", Counter(found) - Counter(expected)), ("rows", Counter(expected) - Counter(found))):
        yield f"only on {name}: {more.total()}"
        yield from (f"    {text}" for text in list(more)[:5])
