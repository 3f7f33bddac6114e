"""``flink state``: what a savepoint or retained checkpoint holds, as lists and tables. Reads files; asks no cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from engine.checkpoint.reader import OperatorSummary, SavepointReader, StateSummary
from engine.checkpoint.state_tables import StateTable
from engine.core.config import Configuration
from engine.core.errors import ConfigError
from flink_yarn import hdfs  # registers hdfs://
from flink_yarn.cli_options import ParsedOptions

__all__ = ["state"]

_ROWS_SHOWN: Final = 20
_CELL_WIDTH_MAX: Final = 60

assert hdfs


def state(parsed: ParsedOptions, config: Configuration) -> int:
    """List operators and their states; or show one state, or write it to a file."""
    if len(parsed.arguments) != 1:
        raise ConfigError(
            "Name the savepoint or checkpoint: flink state <path> [-u <operator> -s <state> [-o <file>] [-l <rows>]]."
        )
    limit = _limit(parsed)
    reader = SavepointReader.read(parsed.arguments[0])
    if not parsed.has("uid"):
        if parsed.has("state") or parsed.has("to"):
            raise ConfigError("Name the operator too, with --uid; flink state <path> lists them.")
        _list(reader, parsed.arguments[0], reader.operators())
        return 0
    operator, name = parsed.get("uid"), parsed.get("state")
    if not name:
        summary = reader.operator(operator)
        if parsed.has("to"):
            known = ", ".join(state.name for state in summary.states) or "none"
            raise ConfigError(f"Name the state of operator {operator!r} with --state; it has {known}.")
        _list(reader, parsed.arguments[0], [summary])
        return 0
    table = reader.timers(operator) if name == "timers" else reader.keyed_state(operator, name)
    if parsed.has("to"):
        num_rows = table.write(parsed.get("to"), limit)
        print(f"{num_rows} rows written to {parsed.get('to')}.")
    else:
        _show(table, _ROWS_SHOWN if limit is None else limit)
    return 0


def _limit(parsed: ParsedOptions) -> int | None:
    text = parsed.get("limit")
    if not parsed.has("limit"):
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--limit {text}: expected a number of rows from 1.")
    return int(text)


def _list(reader: SavepointReader, path: str, operators: Sequence[OperatorSummary]) -> None:
    checkpoint = reader.checkpoint
    taken = datetime.fromtimestamp(checkpoint.timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    print(f"{checkpoint.kind.value.capitalize()} {checkpoint.checkpoint_id} of job {checkpoint.job_id}, taken {taken}")
    print(f"  {path}\n")
    for operator in operators:
        uid = f"uid {operator.uid}" if operator.uid else f"no uid, id {operator.operator_id}"
        print(f"{operator.name}  ({uid}; parallelism {operator.parallelism} of {operator.max_parallelism})")
        if not operator.states:
            print("    no state")
        _print_table(["state", "kind", "entries", "size"], [_columns(summary) for summary in operator.states], "    ")
        print()


def _columns(summary: StateSummary) -> list[str]:
    about = "at most " if summary.is_estimate else ""
    kind = f"{summary.kind}, expires" if summary.has_ttl else summary.kind
    return [summary.name, kind, f"{about}{summary.num_entries}", _size(summary.size_bytes)]


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size_bytes < 1024 or unit == "GB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:.1f} {unit}"


def _show(table: StateTable, limit: int) -> None:
    found = table.to_arrow(limit + 1)
    rows = found.slice(0, limit).to_pylist()
    if not rows:
        print(f"State {table.name!r} is empty.")
        return
    _print_table(found.column_names, [[_cell(row[name]) for name in found.column_names] for row in rows], "")
    if found.num_rows > limit:
        print(f"… there are more; --limit and --to show them ({limit} rows shown).")


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _CELL_WIDTH_MAX else text[: _CELL_WIDTH_MAX - 1] + "…"


def _print_table(names: Sequence[str], rows: Iterable[Sequence[str]], indent: str) -> None:
    lines = list(rows)
    if not lines:
        return
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    for line in (names, ["-" * width for width in widths], *lines):
        print(indent + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
