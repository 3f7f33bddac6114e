"""KeyedStream: records of one key meet in one subtask. PyFlink's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.core.errors import ProgramError
from engine.core.type_info import TypeInformation
from engine.datastream.changelogs import aggregate, deduplicate, top_n
from engine.datastream.data_stream import DataStream, DataStreamSink, _check_function, check_kind
from engine.datastream.field_checks import check_field
from engine.datastream.key_selectors import declared_key_kind
from engine.datastream.windowed_stream import IntervalJoin, WindowedStream
from engine.graph.transformation import Partitioning, ShipStrategy, Transformation
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.deduplicate import FIRST, LAST
from engine.operators.functions import Function
from engine.operators.opened_functions import keeps_state
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction, ProcessFunction
from engine.time.assigners import WindowAssigner, count_windows

__all__ = ["KeyedStream"]


class KeyedStream(DataStream):
    """A stream whose records go, by the hash of their key, to the subtask that owns the key's group."""

    def __init__(self, origin: DataStream, key_selector: Any, key_type: TypeInformation | None) -> None:
        key_kind = declared_key_kind(key_selector, key_type, origin._output_type)
        partitioning = Partitioning(ShipStrategy.HASH, key_selector, key_kind=key_kind)
        super().__init__(origin._env, *(replace(m, partitioning=partitioning) for m in origin._members))
        self._origin = origin
        self._key_selector = key_selector
        self._key_type = key_type

    def get_key_type(self) -> TypeInformation | None:
        return self._key_type

    def _stateful(self, name: str, method: str, func: Any, output_type: TypeInformation | None) -> DataStream:
        """A function with ``open`` may keep state: run it with the key of each record."""
        return self._apply(name, ProcessSpec(func, self._key_selector, output_type, method), output_type)

    def map(self, func: Function | Callable[[Any], Any], output_type: TypeInformation | None = None) -> DataStream:
        """As on any stream; a MapFunction may have keyed state of its RuntimeContext."""
        _check_function(func, "map")
        return self._stateful("Map", "map", func, output_type) if keeps_state(func) else super().map(func, output_type)

    def flat_map(self, func: Function | Callable[[Any], Any], output_type: TypeInformation | None = None) -> DataStream:
        """As on any stream; a FlatMapFunction may have keyed state of its RuntimeContext."""
        _check_function(func, "flat_map")
        if keeps_state(func):
            return self._stateful("Flat Map", "flat_map", func, output_type)
        return super().flat_map(func, output_type)

    def filter(self, func: Function | Callable[[Any], bool]) -> DataStream:
        """As on any stream; a FilterFunction may have keyed state of its RuntimeContext."""
        _check_function(func, "filter")
        if keeps_state(func):
            return self._stateful("Filter", "filter", func, self._output_type)
        return super().filter(func)

    def process(
        self, func: KeyedProcessFunction | ProcessFunction, output_type: TypeInformation | None = None
    ) -> DataStream:
        """Hand each record, with its context, to a function that has keyed state and timers."""
        check_kind(func, "process", KeyedProcessFunction, ProcessFunction)
        return self._stateful("KeyedProcess", "process_element", func, output_type)

    def _keyed(self, name: str, spec: OperatorSpec) -> DataStream:
        edges = [member.edge() for member in self._members]
        node = Transformation(name=name, spec=spec, inputs=edges, output_type=self._output_type)
        return DataStream(self._env, node)

    def reduce(self, func: Function | Callable[[Any, Any], Any]) -> DataStream:
        """Combine the records of a key one by one; streaming: every input gives the result so far."""
        _check_function(func, "reduce")
        return self._keyed("Keyed Reduce", KeyedReduceSpec(self._key_selector, func, False))

    def _aggregate(self, kind: str, field: int | str) -> DataStream:
        check_field(kind, field, self._output_type)
        return self._keyed("Keyed Aggregation", KeyedAggregateSpec(self._key_selector, kind, field, False))

    def sum(self, position_to_sum: int | str = 0) -> DataStream:
        """Add up a field of each key's records; streaming: every record gives the sum so far, in the first record.

        Right behind a changelog (outer joins, ``top_n``, ``last_row``, ``aggregate``, with event times between) the
        sum is that of the records that are there: what is taken back is subtracted, None is left out. Then a changelog
        comes out, of Rows like the first record since the key had none, with the sum in its place: +I with it, -U and
        +U when the sum changes, -D when the last record is gone; in batch +I for each key that has records at the end.
        Integers and decimals are exact, floats are subtracted as they are. ``min`` and ``max`` do the same; ``min_by``
        and ``max_by`` refuse changelogs. Behind a filter or another function, of which the plan does not know what it
        leaves, the first retraction is refused: use ``aggregate``.
        """
        return self._aggregate("sum", position_to_sum)

    def min(self, position_to_min: int | str = 0) -> DataStream:
        return self._aggregate("min", position_to_min)

    def max(self, position_to_max: int | str = 0) -> DataStream:
        return self._aggregate("max", position_to_max)

    def min_by(self, position_to_min_by: int | str = 0) -> DataStream:
        return self._aggregate("min_by", position_to_min_by)

    def max_by(self, position_to_max_by: int | str = 0) -> DataStream:
        return self._aggregate("max_by", position_to_max_by)

    def aggregate(self, *aggregates: Any, state_ttl: Any = None) -> DataStream:
        """Tell of each key how many records there are, their sums, averages, least and greatest values: SQL's GROUP BY
        (ours, not PyFlink's). ``aggregates``: ``count()``, ``sum_("amount")``… of ``engine.datastream.aggregates``.

        Gives a changelog of Rows (key fields, aggregates): +I with a key's first record, -U and +U when a result
        changes, -D when its last record is gone; in batch +I for each key at the end. What the input takes back is
        taken out of all of them. None is left out: without other values a sum, minimum or average is None.
        """
        return aggregate(self, aggregates, state_ttl)

    def top_n(
        self,
        n: int,
        by: Any,
        ascending: Any = False,
        *,
        with_rank: bool = False,
        state_ttl: Any = None,
        changelog: bool = False,
    ) -> DataStream:
        """Keep the first ``n`` records of each key by one or more fields (ours, not PyFlink's; SQL's ROW_NUMBER).

        Gives a changelog: Rows with a RowKind, +I for what comes in and -D for what it pushes out; in batch what is
        left at the end. ``ascending``: one for all fields, or one for each. ``with_rank``: a last field "rank", from
        1, with -U and +U for each record that moves. ``state_ttl``: a Time or Duration after which a key is forgotten.

        Of a changelog all records of a key are kept: one that is taken back is deleted and gives its place to the one
        behind the last. The plan knows one that comes right from where it is made; ``changelog``: one behind a filter
        or another function, which would be refused with the first record that is taken back.
        """
        return top_n(self, n, by, ascending, with_rank=with_rank, state_ttl=state_ttl, changelog=changelog)

    def first_row(self, *, state_ttl: Any = None) -> DataStream:
        """Keep the first record of each key (ours, not PyFlink's). Others are dropped; what comes out is plain."""
        return deduplicate(self, FIRST, state_ttl)

    def last_row(self, *, state_ttl: Any = None) -> DataStream:
        """Tell the last record of each key (ours, not PyFlink's): a changelog of Rows, +I, then -U and +U for each
        record; in batch the last one at the end."""
        return deduplicate(self, LAST, state_ttl)

    def window(self, window_assigner: WindowAssigner) -> WindowedStream:
        """Gather the records of each key in windows."""
        return WindowedStream(self, window_assigner)

    def count_window(self, size: int, slide: int = 0) -> WindowedStream:
        """Gather runs of ``size`` records of each key; with ``slide``, one begins every ``slide`` records."""
        return self.window(count_windows(size, slide))

    def interval_join(self, other: KeyedStream) -> IntervalJoin:
        """Join records whose event times are near each other: ``.between(lower, upper).process(f)`` (Flink's)."""
        return IntervalJoin(self, other)

    def key_by(self, key_selector: Any, key_type: TypeInformation | None = None) -> KeyedStream:
        return self._origin.key_by(key_selector, key_type)

    # A keyed stream has its partitioning: what follows acts on the stream before key_by, as in PyFlink.

    def union(self, *streams: DataStream) -> DataStream:
        return self._origin.union(*streams)

    def shuffle(self) -> DataStream:
        return self._origin.shuffle()

    def rescale(self) -> DataStream:
        return self._origin.rescale()

    def rebalance(self) -> DataStream:
        return self._origin.rebalance()

    def forward(self) -> DataStream:
        return self._origin.forward()

    def project(self, *field_indexes: int) -> DataStream:
        return self._origin.project(*field_indexes)

    def partition_custom(self, partitioner: Any, key_selector: Any) -> DataStream:
        return self._origin.partition_custom(partitioner, key_selector)

    def print(self, sink_identifier: str | None = None) -> DataStreamSink:
        return self._origin.print(sink_identifier)

    def _settings_not_here(self, *args: Any, **kwargs: Any) -> Any:
        raise ProgramError("A keyed stream has no settings of its own; set name, uid, parallelism… before key_by().")

    name = uid = set_uid_hash = set_parallelism = set_max_parallelism = force_non_parallel = _settings_not_here
    set_buffer_timeout = start_new_chain = disable_chaining = slot_sharing_group = _settings_not_here
