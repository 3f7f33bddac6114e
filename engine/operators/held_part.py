"""What of rows that wait (``held_rows``) belongs into a checkpoint: nothing has to be taken up before its barrier.

Two kinds: records that the state has not taken up yet, and results of such that nobody behind has been sent yet. Both
have the key's fields, so they go to whoever gets the key. A chunk is an Arrow IPC stream in the order in which they
came: the records' columns, the values that are folded where they are computed, event time, number, kind. Its metadata
says how a record is taken up, so that ``checkpoint/held_tables`` can do it without the program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.column_fields import is_named
from engine.operators.column_layout import Layout, folded_of, held_kind, result_kind
from engine.state.column_chunks import streams
from engine.state.column_hash import groups_of_rows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["HELD_PART", "HeldPart", "Waiting"]

HELD_PART: Final = "slots-held"
#: Columns behind those of the records: event time (null = none), number in the order of all, whether it is a result.
_NUM_OWN: Final = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    """``is_result``: made by the operator already, and only to be sent on."""

    batch: ColumnBatch
    is_result: bool


@final
class HeldPart:
    """Implements ``parts.KeyedPart``. ``waiting`` gives what there is, in its order, with its layout; what was restored
    is kept until ``take``."""

    def __init__(self, max_parallelism: int, *, is_tuple: bool) -> None:
        self._max_parallelism = max_parallelism
        self._is_tuple = is_tuple
        self._restored: list[bytes] = []
        self.waiting: Callable[[], tuple[Layout, Iterable[Waiting]] | None] = lambda: None
        self.num_waiting: Callable[[], int] = lambda: 0

    @property
    def is_restored(self) -> bool:
        """Whether there is something to take."""
        return bool(self._restored)

    def take(self) -> Iterator[Waiting]:
        """Yield what was restored, results first, and keep it no longer."""
        chunks, self._restored = self._restored, []
        by_types: dict[str, list[pa.Table]] = {}
        for chunk in chunks:
            table = _read(chunk)
            by_types.setdefault(str(table.schema.remove_metadata()), []).append(table)
        for tables in by_types.values():
            yield from _in_order(tables)

    # --- KeyedPart

    def num_entries(self) -> int:
        return self.num_waiting() + len(self._restored)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        chunks: dict[int, bytes] = {}
        for chunk in self._restored:
            batches = _read(chunk).to_batches()
            keys = json.loads(batches[0].schema.metadata[b"how"])["keys"]
            group = int(self._groups([batches[0].column(key) for key in keys])[0])
            if group not in wanted:
                continue
            if group in chunks:  # of subtasks with other types; never of one key group
                raise AssertionError(f"key group {group} was restored twice")
            chunks[group] = chunk
        waiting = self.waiting()
        if waiting is not None:
            layout, batches_of = waiting
            metadata: dict[str, str | bytes] = {
                "how": json.dumps(_how(layout)),
                "schema": layout.schema.serialize().to_pybytes(),
            }
            pieces = self._pieces(layout, batches_of, wanted)
            chunks |= streams(pieces, metadata)
        return chunks

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        self._restored += chunks.values()

    def _groups(self, keys: list[pa.Array]) -> Array:
        return groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple)

    def _pieces(
        self, layout: Layout, batches: Iterable[Waiting], wanted: set[int]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        import numpy as np
        import pyarrow as pa

        number = 0
        for waiting in batches:
            rows = _with_own(layout, waiting, number)
            number += rows.num_rows
            groups = self._groups([rows.column(key) for key in layout.keys]).astype(np.int64)
            order = np.argsort(groups, kind="stable")
            groups = groups[order]
            rows = rows.take(pa.array(order))
            begin = 0
            for end in (np.flatnonzero(np.diff(groups, append=-1)) + 1).tolist():
                if int(groups[begin]) in wanted:
                    yield int(groups[begin]), rows.slice(begin, end - begin)
                begin = end


def _with_own(layout: Layout, waiting: Waiting, number: int) -> pa.RecordBatch:
    import numpy as np
    import pyarrow as pa

    columns, stamps = waiting.batch.columns, waiting.batch.timestamps_ms
    num_rows = columns.num_rows
    arrays = list(columns.columns)
    for index, how in layout.folded.items():  # records and results are in one stream
        arrays[index] = arrays[index].cast(result_kind(how, layout.types[index]))
    computed = _computed(layout)
    given = None if waiting.is_result or not computed else folded_of(layout, columns, None)
    for index in computed:
        kind = held_kind(layout, index)
        arrays.append(pa.nulls(num_rows, kind) if given is None else pa.array(given[index]).cast(kind, safe=False))
    arrays += [
        pa.nulls(num_rows, pa.int64()) if stamps is None else pa.array(stamps, pa.int64()),
        pa.array(np.arange(number, number + num_rows)),
        pa.array(np.full(num_rows, waiting.is_result)),
    ]
    return pa.RecordBatch.from_arrays(arrays, names=[str(at) for at in range(len(arrays))])


def _computed(layout: Layout) -> list[int]:
    """Return the folds whose values are something else than a field."""
    return [] if layout.values is None else [index for index in layout.folded if layout.values.is_computed(index)]


def _how(layout: Layout) -> dict[str, Any]:
    num_fields = len(layout.schema)
    given = {index: num_fields + at for at, index in enumerate(_computed(layout))}
    choice = None if layout.choice is None else (layout.choice.sign, layout.choice.negated)
    return {
        "keys": layout.keys,
        "fields": layout.schema.names,
        "folded": [
            (index, kind, layout.name_of(index), given.get(index, index)) for index, kind in layout.folded.items()
        ],
        "kept": [(index, layout.name_of(index)) for index in layout.kept],
        "choice": choice,
    }


def _read(chunk: bytes) -> pa.Table:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
        return reader.read_all()


def _of_results(table: pa.Table, how: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Return the rows with the columns that are folded as results have them: in chunks of former versions they may be
    as records have them."""
    table = table.replace_schema_metadata(None)
    for index, kind, *_ in how["folded"]:
        table = table.set_column(index, str(index), table.column(index).cast(result_kind(kind, schema.types[index])))
    return table


def _in_order(tables: list[pa.Table]) -> Iterator[Waiting]:
    """Yield the rows of chunks of the same types, results first, batch by batch."""
    import numpy as np
    import pyarrow as pa

    schema = pa.ipc.read_schema(pa.py_buffer(tables[0].schema.metadata[b"schema"]))
    named = is_named(schema)
    how = json.loads(tables[0].schema.metadata[b"how"])
    rows = pa.concat_tables([_of_results(table, how, schema) for table in tables]).combine_chunks()
    *_, stamps, numbers, are_results = (rows.column(at) for at in range(rows.num_columns))
    is_result = are_results.to_numpy()
    order = np.lexsort((numbers.to_numpy(), ~is_result))
    rows = rows.take(pa.array(order))
    is_result = is_result[order]
    is_stamped = ~np.asarray(stamps.is_null())[order]
    edges = np.flatnonzero(np.diff(is_result) | np.diff(is_stamped)) + 1
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), rows.num_rows], strict=True):
        for at in range(begin, end, BATCH_ROWS_MAX):
            (batch,) = rows.slice(at, min(end - at, BATCH_ROWS_MAX)).combine_chunks().to_batches()
            arrays = batch.columns[: len(schema)]
            if not is_result[at]:
                arrays = [column.cast(kind) for column, kind in zip(arrays, schema.types, strict=True)]
            columns = pa.RecordBatch.from_arrays(arrays, names=schema.names)
            times = batch.column(batch.num_columns - _NUM_OWN).to_numpy() if is_stamped[at] else None
            yield Waiting(ColumnBatch(columns, times, named=named), bool(is_result[at]))
