"""Ship strategy → which consumer channel each record goes to. Pure: a batch in, (channel, batch) pairs out.

The order of records within a channel is that of the input. Row batches are cut with lists, column batches with one
reordered copy; their hash follows the same law (``state/key_groups``, ``column_hash``). With a single consumer there
is nothing to decide and no key is computed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from engine.core.arrow_arrays import arrow_of
from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import Batch, ColumnBatch, RowBatch, rows_of
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.failure import user_error
from engine.operators.functions import Function, RuntimeContext, callable_of
from engine.operators.keys import ComposedKey, FieldKey, key_error, key_function
from engine.runtime.exchange.column_scatter import ColumnScatter
from engine.state.key_groups import MAX_PARALLELISM_DEFAULT, MAX_PARALLELISM_MAX, KeyToSubtask, stable_hash

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.compile.column_steps import ColumnFunction
    from engine.runtime.exchange.column_hash import KnownChannels

__all__ = ["ChannelSelector", "default_max_parallelism", "make_channel_selector", "split_by_channel"]


class ChannelSelector(Protocol):
    """Cuts batches by channel. One per exit and subtask; stateful where the strategy is (round robin)."""

    def split(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        """Return the non-empty parts of a non-empty batch, channels rising. One that gathers may return fewer, and
        those of batches before; then a channel may come twice."""
        ...

    def take_held(self) -> Sequence[tuple[int, Batch]]:
        """Return the parts of what ``split`` has held back. Never fails for what the records are."""
        ...

    def open(self, runtime_context: RuntimeContext) -> None: ...

    def close(self) -> None: ...


def default_max_parallelism(parallelism: int) -> int:
    """Return the number of key groups when nobody set it. Source: Flink's computeDefaultMaxParallelism."""
    wanted = parallelism + parallelism // 2
    power = 1 << max(0, wanted - 1).bit_length()
    return min(max(power, MAX_PARALLELISM_DEFAULT), MAX_PARALLELISM_MAX)


def make_channel_selector(
    partitioning: Partitioning,
    num_channels: int,
    *,
    operator_name: str,
    subtask_index: int = 0,
    max_parallelism: int = 0,
    gathers: bool = False,
) -> ChannelSelector:
    """``max_parallelism``: of the consumer; 0 = the default for ``num_channels``. ``gathers``: may hold batches back to
    cut several together, until it is asked for them."""
    match partitioning.strategy:
        case ShipStrategy.CUSTOM:  # also with one channel: a wrong partitioner must not pass unnoticed
            return _Custom(partitioning, num_channels, operator_name)
        case ShipStrategy.RANGE:
            raise ProgramError("Range partitioning needs a sampled range partitioner: use CUSTOM with one.")
        case _ if num_channels == 1:
            return _Single()
        case ShipStrategy.HASH:
            max_parallelism = max_parallelism or default_max_parallelism(num_channels)
            return _Hash(partitioning.key_selector, num_channels, max_parallelism, operator_name, gathers)
        case ShipStrategy.REBALANCE:
            # Subtasks begin at different channels, so that few records spread too.
            return _RoundRobin(num_channels, subtask_index % num_channels)
        case ShipStrategy.RESCALE | ShipStrategy.FORWARD:
            return _RoundRobin(num_channels, 0)
        case ShipStrategy.SHUFFLE:
            return _Shuffle(num_channels, subtask_index)
        case ShipStrategy.BROADCAST:
            return _Broadcast(num_channels)
        case ShipStrategy.GLOBAL:
            return _Single()
        case _:
            raise AssertionError(partitioning.strategy)


# --- cutting -------------------------------------------------------------------------------------------------------


def split_by_channel(
    batch: Batch, channel_of_row: Sequence[int] | bytes | np.ndarray[Any, Any], num_channels: int
) -> list[tuple[int, Batch]]:
    """Cut a batch into its parts by channel, keeping the order of rows. Every channel number is in range."""
    if isinstance(batch, ColumnBatch):
        return _split_columns(batch, channel_of_row, num_channels)
    if num_channels <= len(_MASKS):
        return _split_rows(batch, bytes(channel_of_row), num_channels)
    rows_by_channel: list[list[Any]] = [[] for _ in range(num_channels)]
    appends = [rows.append for rows in rows_by_channel]
    for row, channel in zip(batch.rows, channel_of_row, strict=True):
        appends[channel](row)
    stamps = batch.timestamps_ms
    if stamps is None:
        return [(channel, RowBatch(rows)) for channel, rows in enumerate(rows_by_channel) if rows]
    stamps_by_channel: list[list[int]] = [[] for _ in range(num_channels)]
    for stamp, channel in zip(stamps, channel_of_row, strict=True):
        stamps_by_channel[channel].append(stamp)
    return [(c, RowBatch(rows, stamps_by_channel[c])) for c, rows in enumerate(rows_by_channel) if rows]


#: By channel: turns its number into 1 and all others into 0.
_MASKS: Final = tuple(bytes(number == channel for number in range(256)) for channel in range(4))


def _split_rows(batch: RowBatch, channel_of_row: bytes, num_channels: int) -> list[tuple[int, Batch]]:
    """For few channels: a pass in C over the rows for each costs less than one in Python over all (20 to 45 ns a row
    for two)."""
    assert len(channel_of_row) == len(batch.rows)  # else rows would vanish
    parts: list[tuple[int, Batch]] = []
    for channel, mask in enumerate(_MASKS[:num_channels]):
        is_here = channel_of_row.translate(mask)
        rows = list(itertools.compress(batch.rows, is_here))
        if rows:
            stamps = batch.timestamps_ms
            parts.append(
                (channel, RowBatch(rows, None if stamps is None else list(itertools.compress(stamps, is_here))))
            )
    return parts


def _split_columns(
    batch: ColumnBatch, channel_of_row: Sequence[int] | bytes | np.ndarray[Any, Any], num_channels: int
) -> list[tuple[int, Batch]]:
    import numpy as np

    from engine.state.hash_kernels import order_by_channel

    num_rows = len(batch)
    if isinstance(channel_of_row, bytes):
        channel_of_row = np.frombuffer(channel_of_row, np.uint8)
    channels = np.asarray(channel_of_row, np.uint16)
    assert channels.size == num_rows  # else rows would vanish
    order = np.empty(num_rows, np.int32)
    ends = np.zeros(num_channels, np.int64)
    order_by_channel(channels, ends, order)
    starts = [0, *ends[:-1].tolist()]
    parts = [(channel, start, end) for channel, (start, end) in enumerate(zip(starts, ends.tolist())) if start < end]
    if len(parts) == 1:
        return [(parts[0][0], batch)]
    stamps, kinds = batch.timestamps_ms, batch.kinds
    grouped = ColumnBatch(
        _taken(batch.columns, order),
        None if stamps is None else stamps.take(order),
        batch.scalar,
        batch.named,
        None if kinds is None else kinds.take(order),
    )
    return [(channel, grouped.slice(start, end)) for channel, start, end in parts]


def _taken(columns: pa.RecordBatch, order: np.ndarray[Any, Any]) -> pa.RecordBatch:
    """Return the rows in that order. Plain numbers by numpy, without the checks of Arrow's take."""
    import pyarrow as pa

    from engine.state.arrow_views import values_of

    arrays: list[pa.Array] = []
    indexes: pa.Array | None = None
    for column in columns.columns:
        kind = column.type
        if not column.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            arrays.append(arrow_of(values_of(column).take(order), kind))
            continue
        if indexes is None:
            indexes = arrow_of(order)
        arrays.append(column.take(indexes))
    return pa.RecordBatch.from_arrays(arrays, schema=columns.schema)


# --- strategies ----------------------------------------------------------------------------------------------------


class _Stateless:
    def take_held(self) -> Sequence[tuple[int, Batch]]:
        return ()

    def open(self, runtime_context: RuntimeContext) -> None:
        pass

    def close(self) -> None:
        pass


@final
class _Single(_Stateless):
    def split(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        return ((0, batch),)


@final
class _Broadcast(_Stateless):
    def __init__(self, num_channels: int) -> None:
        self._channels = range(num_channels)

    def split(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        return [(channel, batch) for channel in self._channels]


@final
class _RoundRobin(_Stateless):
    """Record by record, as Flink does."""

    def __init__(self, num_channels: int, first: int) -> None:
        self._num_channels = num_channels
        self._next = first

    def split(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        num, first = self._num_channels, self._next
        self._next = (first + len(batch)) % num
        if isinstance(batch, ColumnBatch):
            return self._split_columns(batch, first)
        rows, stamps = batch.rows, batch.timestamps_ms
        parts: list[tuple[int, Batch]] = []
        for channel in range(num):
            start = (channel - first) % num
            if start < len(rows):
                part_stamps = None if stamps is None else stamps[start::num]
                parts.append((channel, RowBatch(rows[start::num], part_stamps)))
        return parts

    def _split_columns(self, batch: ColumnBatch, first: int) -> Sequence[tuple[int, Batch]]:
        """Whole runs of rows: the counts per channel are those of round robin, and nothing is copied."""
        num = self._num_channels
        parts: list[tuple[int, Batch]] = []
        at = 0
        for channel in range(num):
            start = (channel - first) % num
            count = len(range(start, len(batch), num))
            if count:
                parts.append((channel, batch.slice(at, at + count)))
                at += count
        return parts


@final
class _Shuffle(_Stateless):
    def __init__(self, num_channels: int, seed: int) -> None:
        self._channels = range(num_channels)
        self._random = random.Random(seed)

    def split(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        return split_by_channel(batch, self._random.choices(self._channels, k=len(batch)), len(self._channels))


class _Keyed:
    """Computes keys with the user's selector."""

    def __init__(self, key_selector: Any, operator_name: str) -> None:
        self._selector = key_selector
        self._operator_name = operator_name
        self._key_of = key_function(key_selector)

    def take_held(self) -> Sequence[tuple[int, Batch]]:
        return ()

    def open(self, runtime_context: RuntimeContext) -> None:
        if isinstance(self._selector, Function):
            self._selector.open(runtime_context)

    def close(self) -> None:
        if isinstance(self._selector, Function):
            self._selector.close()

    def _keys(self, batch: Batch) -> tuple[list[Any], list[Any]]:
        rows = rows_of(batch).rows
        keys: list[Any] = []
        try:
            keys.extend(map(self._key_of, rows))
        except Exception as error:
            seen = key_error(error, self._selector, rows[len(keys)])
            raise self._blame(seen, rows, keys) from seen
        return rows, keys

    def _blame(self, error: BaseException, rows: list[Any], done: list[Any]) -> UserCodeError:
        """``done`` holds the results of the rows before the one that failed."""
        return user_error(error, operator_name=self._operator_name, record=rows[len(done)])


@final
class _Hash(_Keyed):
    def __init__(
        self, key_selector: Any, num_channels: int, max_parallelism: int, operator_name: str, gathers: bool
    ) -> None:
        super().__init__(key_selector, operator_name)
        self._num_channels = num_channels
        self._max_parallelism = max_parallelism
        self._channel_of_key = KeyToSubtask(num_channels, max_parallelism)
        self._gathers = gathers
        self._scatter: ColumnScatter | None = None  #: made for the first columns
        self._known: KnownChannels | None = None  #: likewise
        self._computed: ColumnFunction | None = None  #: likewise, of a selector that is no field

    def take_held(self) -> Sequence[tuple[int, Batch]]:
        return () if self._scatter is None else self._scatter.take()

    def split(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        if isinstance(batch, ColumnBatch):
            from engine.runtime.exchange.column_hash import KnownChannels, key_columns, subtask_of_rows

            columns = key_columns(batch, self._selector) or self._computed_key(batch)
            if columns is not None:
                self._known = self._known or KnownChannels()
                channels = subtask_of_rows(
                    columns[0], self._num_channels, self._max_parallelism, is_tuple=columns[1], known=self._known
                )
                if self._scatter is None:
                    self._scatter = ColumnScatter(self._num_channels, gathers=self._gathers)
                ready = self._scatter.add(batch, channels)
                if ready is not None:
                    return ready
                return [*self.take_held(), *_split_columns(batch, channels, self._num_channels)]
        parts = self._split_by_keys(batch)
        return [*held, *parts] if (held := self.take_held()) else parts

    def _computed_key(self, batch: ColumnBatch) -> tuple[list[pa.Array], bool] | None:
        """Return the key's columns, and whether it is a tuple of them, where the user's function compiles to
        expressions that give them; None = the function must see rows."""
        if isinstance(self._selector, FieldKey | ComposedKey):
            return None
        if self._computed is None:
            from engine.operators.compile.column_steps import ColumnFunction

            self._computed = ColumnFunction(self._selector, is_filter=False, method="get_key")
        keys = self._computed.apply(batch)
        if keys is None or keys is batch or keys.named or not _are_plain_keys(keys.columns.schema.types):
            return None
        return keys.columns.columns, not keys.scalar

    def _split_by_keys(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        rows, keys = self._keys(batch)
        channels_of_keys = self._channel_of_key.of_keys(keys)
        if channels_of_keys is not None:
            return split_by_channel(batch, channels_of_keys, self._num_channels)
        channel_of_row: list[int] = []
        try:
            channel_of_row.extend(map(self._channel_of_key.__getitem__, keys))
        except Exception as error:  # a key that cannot be one
            try:
                stable_hash(keys[len(channel_of_row)])
            except ProgramError as clearer:  # says more than "unhashable type"
                raise self._blame(clearer, rows, channel_of_row) from clearer
            raise self._blame(error, rows, channel_of_row) from error
        return split_by_channel(batch, channel_of_row, self._num_channels)


def _are_plain_keys(kinds: list[pa.DataType]) -> bool:
    """Whether values of these types are numbers, truth values or texts: others may be no keys, which rows tell best."""
    from pyarrow import types

    asked = (types.is_integer, types.is_floating, types.is_boolean, types.is_string)
    return all(any(ask(kind) for ask in asked) for kind in kinds)


@final
class _Custom(_Keyed):
    def __init__(self, partitioning: Partitioning, num_channels: int, operator_name: str) -> None:
        selector = partitioning.key_selector
        super().__init__(_identity if selector is None else selector, operator_name)
        self._num_channels = num_channels
        self._partitioner = partitioning.partitioner
        self._channel_of_key: Callable[..., Any] = callable_of(self._partitioner, "partition")

    def open(self, runtime_context: RuntimeContext) -> None:
        super().open(runtime_context)
        if isinstance(self._partitioner, Function):
            self._partitioner.open(runtime_context)

    def close(self) -> None:
        super().close()
        if isinstance(self._partitioner, Function):
            self._partitioner.close()

    def split(self, batch: Batch) -> Sequence[tuple[int, Batch]]:
        rows, keys = self._keys(batch)
        channel_of_row: list[int] = []
        channel_of_key, num = self._channel_of_key, self._num_channels
        try:
            for key in keys:
                channel = index(channel_of_key(key, num))
                if not 0 <= channel < num:
                    raise UserCodeError(
                        f"The partitioner returned channel {channel!r} for key {key!r}; expected 0 to {num - 1} "
                        f"(there are {num} partitions).\n  in operator {self._operator_name!r}"
                    )
                channel_of_row.append(channel)
        except Exception as error:
            raise self._blame(error, rows, channel_of_row) from error
        if num == 1:
            return ((0, batch),)
        return split_by_channel(batch, channel_of_row, num)


def _identity(record: Any) -> Any:
    return record
