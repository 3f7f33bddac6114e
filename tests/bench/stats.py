"""Spreads, percentiles and ratios of what was measured. Pure."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["append_json", "percentile", "ratios", "shown", "spread", "stamped"]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the sorted ``values`` that at least ``share`` (0 to 1) of them do not exceed (nearest
    rank: always a value that was seen). Raises: ValueError when there are none."""
    if not values or not 0 <= share <= 1:
        raise ValueError(f"percentile {share} of {len(values)} values")
    # The product of a share such as 0.99 may be off by the last bit of a float: that is no whole rank.
    return values[max(0, math.ceil(round(share * len(values), 6)) - 1)]


def spread(values: Iterable[float], digits: int | None = None) -> list[float]:
    """Return [min, median, max]."""
    taken = list(values)
    return [round(found, digits) for found in (min(taken), statistics.median(taken), max(taken))]


def ratios(above: Sequence[float], below: Sequence[float], digits: int = 2) -> list[float]:
    """Return [min, median, max] of above / below, run by run: what else the machine did then was the same for both."""
    return spread((a / b for a, b in zip(above, below, strict=True)), digits)


def shown(values: Sequence[float], unit: float = 1, digits: int = 2) -> str:
    """``3.10 / 3.25 / 3.30``"""
    return " / ".join(f"{value / unit:.{digits}f}" for value in values)


def stamped(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the time and the load of the machine."""
    with open("/proc/loadavg", encoding="ascii") as stream:
        load = float(stream.read().split()[0])
    return {**row, "load": load, "at": time.strftime("%Y-%m-%d %H:%M:%S")}


#: What a command that prints a table has measured, for ``python -m tests.bench <command> --json``.
RECORDED: list[dict[str, Any]] = []


def record(row: dict[str, Any]) -> None:
    """Note a line of a command's table."""
    RECORDED.append(stamped(row))


def append_json(path: str | None, rows: Iterable[dict[str, Any]]) -> None:
    """Append a line of JSON for each row; None: nowhere."""
    if path:
        with open(path, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
