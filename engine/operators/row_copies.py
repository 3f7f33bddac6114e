"""Copies of records for a second consumer: what one function changes in a record, another one must not see.

A stream with several consumers gives each but the first a copy of its own, unless ``pipeline.object-reuse`` is on.
Records of immutable values, and columns, are shared: finding that out costs some 20 ns a value. A single consumer gets
what its predecessor made, uncopied (docs/decisions/0016-copies-for-several-consumers.md).
"""

from __future__ import annotations

import copy
import datetime
import decimal
import itertools
import pickle
from typing import Any, Final

from engine.core.records import Batch, RowBatch

__all__ = ["private_copy"]

_IMMUTABLE: Final = frozenset(
    {
        bool,
        bytes,
        complex,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        float,
        int,
        str,
        type(None),
    }
)


def private_copy(batch: Batch) -> Batch:
    """Return a batch whose records nobody else holds; the very batch when its records cannot be changed.

    What can be neither pickled nor deep-copied (an open file, a lock) stays shared, with the rest of its batch.
    """
    if not isinstance(batch, RowBatch) or _are_immutable(batch.rows):
        return batch
    return RowBatch(_copied(batch.rows), batch.timestamps_ms)


def _are_immutable(rows: list[Any]) -> bool:
    types = set(map(type, rows))
    if types <= _IMMUTABLE:
        return True
    return types == {tuple} and set(map(type, itertools.chain.from_iterable(rows))) <= _IMMUTABLE


def _copied(rows: list[Any]) -> list[Any]:
    for duplicate in (_by_pickle, copy.deepcopy):
        try:
            return duplicate(rows)
        except Exception:
            continue  # classes of the program are not importable everywhere; not everything has a copy
    return rows


def _by_pickle(rows: list[Any]) -> list[Any]:
    found: list[Any] = pickle.loads(pickle.dumps(rows, 5))
    return found
