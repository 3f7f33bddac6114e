"""Takes up records that waited at a barrier (``operators/held_part``) into entries of the state that they waited for.

A checkpoint has such records beside the state, as nothing is taken up before a barrier. Who reads it without the
program wants the values with them, so this does what the operator would have done: add, compare, choose, in the order
in which the records came. Not here: entries of the state itself (``column_tables``).
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final

from engine.core.records import record_values

__all__ = ["held_part_of", "take_up_held"]

_SUFFIX: Final = "-held"
_COMPARED: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def held_part_of(part: str) -> str:
    """Return the part with the records that waited for this one."""
    return part + _SUFFIX


def take_up_held(chunk: bytes, entries: dict[Any, Any], hashable: Callable[[Any], Hashable]) -> None:
    """Change the entries, (key, namespace, value) by (namespace, ``hashable(key)``), of the chunk's key group.

    A record with a null where a number is needed is left out: the operator would hand it to its function.
    """
    for how, record, given in _records(chunk):
        parts = tuple(record[at] for at in how["keys"])
        key = parts[0] if len(parts) == 1 else parts
        place = None, hashable(key)
        if place not in entries:
            value = {name: record[index] for index, _, name, _ in how["folded"]}
            value.update((name, record[index]) for index, name in how["kept"])
        else:
            value = _taken_up(how, _fields(entries[place][2]), record, given)
        entries[place] = key, None, value["value"] if list(value) == ["value"] else value


def _fields(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {"value": value}


def _taken_up(how: dict[str, Any], value: dict[str, Any], record: list[Any], given: list[Any]) -> dict[str, Any]:
    if how["choice"] is not None:
        ((index, _, name, _),) = how["folded"]
        sign, is_negated = how["choice"]
        if given[0] is not None and _COMPARED[sign](given[0], value[name]) != is_negated:
            value[name] = record[index]
            value.update((own, record[at]) for at, own in how["kept"])
        return value
    for (_, kind, name, _), new in zip(how["folded"], given, strict=True):
        if kind == "last":
            value[name] = new
        elif new is None or value[name] is None:
            continue
        elif kind == "sum":
            value[name] += new
        elif (kind == "min" and new < value[name]) or (kind == "max" and new > value[name]):
            value[name] = new
    return value


def _records(chunk: bytes) -> Iterator[tuple[dict[str, Any], list[Any], list[Any]]]:
    """Yield the records that the state has not taken up, with the values that are folded."""
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
        how = json.loads((reader.schema.metadata or {})[b"how"])
        for batch in reader:
            *columns, _, _, are_results = map(record_values, batch.columns)
            for at, is_result in enumerate(are_results):
                if not is_result:
                    record = [columns[index][at] for index in range(len(how["fields"]))]
                    yield how, record, [columns[place][at] for *_, place in how["folded"]]
