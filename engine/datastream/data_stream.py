"""DataStream and its kin: what a program can say about a stream. PyFlink's names and signatures.

A stream is a node of the program's graph plus how its records will travel to the next one (partitioning), which of its
outputs is meant (side tag) and what it is united with. ``KeyedStream`` stands in ``keyed_stream``.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from engine.connectors.collect import CollectSinkSpec
from engine.connectors.file_sinks import CsvFileSinkSpec, TextFileSinkSpec, WriteMode
from engine.connectors.simple import FunctionSinkSpec, PrintSpec
from engine.core.errors import ConfigError, EngineError, ProgramError
from engine.core.ids import OperatorID
from engine.core.type_info import TupleTypeInfo, TypeInformation, Types
from engine.core.user_code import told_briefly
from engine.datastream.key_selectors import as_key_selector, check_key_type
from engine.datastream.row_types import with_row_output
from engine.datastream.slot_sharing_group import SlotSharingGroup
from engine.graph.job_graph import JobGraph
from engine.graph.transformation import ChainingStrategy, Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.base import OperatorSpec
from engine.operators.co_process import CoProcessSpec
from engine.operators.functions import CoFlatMapFunction, CoMapFunction, Function, SinkFunction
from engine.operators.map_batches import MapBatchesSpec, check_batch_format
from engine.operators.opened_functions import keeps_state
from engine.operators.output_tag import OutputTag
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import (
    CoProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    ProcessFunction,
)
from engine.operators.stateless import (
    CoFlatMapSpec,
    CoMapSpec,
    FilterSpec,
    FlatMapSpec,
    MapSpec,
    ProjectSpec,
)
from engine.operators.timestamps import TimestampsSpec
from engine.state.descriptors import MapStateDescriptor
from engine.time.watermarks import WatermarkStrategy

if TYPE_CHECKING:
    from engine.client.job_client import JobClient
    from engine.common.execution_config import ExecutionConfig
    from engine.datastream.environment import StreamExecutionEnvironment
    from engine.datastream.keyed_stream import KeyedStream
    from engine.datastream.windowed_stream import AllWindowedStream, CoGroupedStreams, JoinedStreams
    from engine.time.assigners import WindowAssigner

__all__ = ["CloseableIterator", "ConnectedStreams", "DataStream", "DataStreamSink"]

T = TypeVar("T")
#: What ``KeyedStream`` has and others have not.
_OF_KEYED_STREAMS = frozenset(("reduce", "sum", "min", "max", "min_by", "max_by", "top_n", "first_row", "last_row"))
#: What such an operator yields with a tag is a record like any other.
_WITHOUT_SIDE_OUTPUTS = (MapSpec, FlatMapSpec, FilterSpec, ProjectSpec, CoMapSpec, CoFlatMapSpec, MapBatchesSpec)
_DEFAULT_FORWARD = Partitioning(ShipStrategy.FORWARD, is_default=True)


@dataclass(frozen=True)
class Member:
    """One of the streams that a DataStream unites."""

    node: Transformation
    partitioning: Partitioning = _DEFAULT_FORWARD
    side_tag: str | None = None
    #: what the side output carries, if known
    side_type: TypeInformation | None = None

    def edge(self, input_index: int = 0) -> Edge:
        return Edge(self.node, self.partitioning, input_index, self.side_tag)


class _Named:
    """Settings of the node that a stream or sink stands for."""

    _node: Transformation

    def name(self, name: str) -> Self:
        self._node.name = name
        return self

    def uid(self, uid: str) -> Self:
        """Give the operator an id that survives changes of the program: state is found by it."""
        if not isinstance(uid, str) or not uid:
            raise ProgramError(f"uid({uid!r:.80}): expected a name for the operator, a text that is not empty.")
        self._node.uid = uid
        return self

    def set_uid_hash(self, uid_hash: str) -> Self:
        self._node.uid_hash = str(OperatorID.parse(uid_hash))
        return self

    def set_parallelism(self, parallelism: int) -> Self:
        if not isinstance(parallelism, int) or parallelism < 1:
            raise ConfigError(f"set_parallelism({parallelism!r}): expected a whole number of at least 1.")
        if self._node.forced_non_parallel and parallelism != 1:
            raise ProgramError(f"The parallelism of {self._node.name!r} must be 1, got {parallelism}.")
        self._node.parallelism = parallelism
        return self

    def set_description(self, description: str) -> Self:
        self._node.description = description
        return self

    def disable_chaining(self) -> Self:
        self._node.chaining = ChainingStrategy.NEVER
        return self

    def slot_sharing_group(self, slot_sharing_group: str | SlotSharingGroup) -> Self:
        group = slot_sharing_group
        self._node.slot_sharing_group = group if isinstance(group, str) else group.get_name()
        return self


class DataStream(_Named):
    """An unkeyed stream of records."""

    def __init__(self, env: StreamExecutionEnvironment, *members: Transformation | Member) -> None:
        self._env = env
        self._members = tuple(m if isinstance(m, Member) else Member(m) for m in members)
        self._node = self._members[0].node

    @property
    def _output_type(self) -> TypeInformation | None:
        first = self._members[0]
        return first.node.output_type if first.side_tag is None else first.side_type

    # --- about the stream ----------------------------------------------------------------------------------------

    def get_name(self) -> str:
        return self._node.name

    def get_type(self) -> TypeInformation:
        return self._output_type or Types.PICKLED_BYTE_ARRAY()

    def get_execution_environment(self) -> StreamExecutionEnvironment:
        return self._env

    def get_execution_config(self) -> ExecutionConfig:
        return self._env.get_config()

    def set_max_parallelism(self, max_parallelism: int) -> Self:
        if not isinstance(max_parallelism, int):
            raise ConfigError(f"set_max_parallelism({max_parallelism!r:.80}): expected a whole number.")
        self._node.max_parallelism = max_parallelism
        return self

    def force_non_parallel(self) -> Self:
        self._node.parallelism = 1
        self._node.forced_non_parallel = True
        return self

    def set_buffer_timeout(self, timeout_millis: int) -> Self:
        """Set the buffer timeout of this operator's output; see StreamExecutionEnvironment.set_buffer_timeout."""
        from engine.datastream.environment import _check_buffer_timeout

        _check_buffer_timeout(timeout_millis)
        self._node.buffer_timeout_ms = timeout_millis
        return self

    def start_new_chain(self) -> Self:
        self._node.chaining = ChainingStrategy.HEAD
        return self

    # --- one record at a time ------------------------------------------------------------------------------------

    def _apply(self, name: str, spec: OperatorSpec, output_type: TypeInformation | None) -> DataStream:
        edges = [member.edge() for member in self._members]
        return DataStream(self._env, Transformation(name=name, spec=spec, inputs=edges, output_type=output_type))

    def map(self, func: Function | Callable[[Any], Any], output_type: TypeInformation | None = None) -> DataStream:
        _check_function(func, "map")
        return self._apply("Map", MapSpec(with_row_output(func, "map", output_type), self._output_type), output_type)

    def flat_map(self, func: Function | Callable[[Any], Any], output_type: TypeInformation | None = None) -> DataStream:
        _check_function(func, "flat_map")
        return self._apply("Flat Map", FlatMapSpec(with_row_output(func, "flat_map", output_type)), output_type)

    def filter(self, func: Function | Callable[[Any], bool]) -> DataStream:
        _check_function(func, "filter")
        return self._apply("Filter", FilterSpec(func, self._output_type), self._output_type)

    def process(self, func: ProcessFunction, output_type: TypeInformation | None = None) -> DataStream:
        """Hand each record, with its context, to a ProcessFunction; what it yields with a tag is a side output."""
        if isinstance(func, KeyedProcessFunction):
            raise ProgramError(f"process({type(func).__name__}()): a KeyedProcessFunction needs key_by(...) before it.")
        check_kind(func, "process", ProcessFunction)
        return self._apply("Process", ProcessSpec(func, None, output_type), output_type)

    def map_batches(
        self, func: Callable[[Any], Any], output_type: TypeInformation, *, batch_format: str = "pyarrow"
    ) -> DataStream:
        """Apply ``func`` to whole batches of columns (ours, not PyFlink's). It gets a ``pyarrow.RecordBatch``, or by
        ``batch_format`` a ``"pandas"`` or ``"polars"`` DataFrame or, for ``"numpy"``, a dict of arrays, and returns any
        of these, or None for nothing. Columns are cast to ``output_type``: rows with names take theirs by name, all
        else in order. Batches have the size they happen to have; a result of as many records keeps their event times,
        any other has none. What a changelog takes back is refused, for columns have no kind. Raises: ProgramError for
        an unknown format or one whose library is not installed."""
        check_batch_format(batch_format)
        spec = MapBatchesSpec(func, batch_format, self._output_type, output_type)
        return self._apply("Map Batches", spec, output_type)

    def project(self, *field_indexes: int) -> DataStream:
        """Keep the fields of tuple or Row records that are named by their indexes, in that order. Results are tuples,
        so what a changelog takes back is refused."""
        indexes = tuple(
            itertools.chain.from_iterable(i if isinstance(i, (list, tuple)) else (i,) for i in field_indexes)
        )
        own = self._output_type
        projected = None
        if isinstance(own, TupleTypeInfo):
            types = own.get_field_types()
            if any(not 0 <= index < len(types) for index in indexes):
                raise ProgramError(f"project{indexes}: the stream has fields 0 to {len(types) - 1}.")
            projected = Types.TUPLE([types[index] for index in indexes])
        return self._apply("Projection", ProjectSpec(indexes), projected)

    def assign_timestamps_and_watermarks(self, watermark_strategy: WatermarkStrategy) -> DataStream:
        """Stamp the records, and say how far event time has come in each subtask here. Where splits of a source are to
        have watermarks of their own, give the strategy to ``from_source``."""
        if not isinstance(watermark_strategy, WatermarkStrategy):
            raise ProgramError(
                f"assign_timestamps_and_watermarks({watermark_strategy!r:.80}): expected a WatermarkStrategy, such as "
                "WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(…)."
            )
        if watermark_strategy.alignment is not None:
            warnings.warn(
                "assign_timestamps_and_watermarks: with_watermark_alignment(...) has no effect here, for only a source "
                "can wait for others. Give the strategy to from_source(...).",
                stacklevel=2,
            )
        return self._apply("Timestamps/Watermarks", TimestampsSpec(watermark_strategy), self._output_type)

    # --- windows ---------------------------------------------------------------------------------------------------

    def window(self, window_assigner: WindowAssigner) -> Any:
        raise ProgramError("window(…) needs a key: call key_by(…) before it, or window_all(…) for one window of all.")

    def count_window(self, size: int, slide: int = 0) -> Any:
        raise ProgramError("count_window(…) needs a key: call key_by(…) before it, or count_window_all(…) for all.")

    def interval_join(self, other: Any) -> Any:
        raise ProgramError("interval_join(…) needs keys: a.key_by(…).interval_join(b.key_by(…)).between(…).process(…).")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What only streams with keys have is told so."""
            told = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _OF_KEYED_STREAMS:
                told = f"{name}(…) needs a key: call key_by(…) before it."
            raise AttributeError(told)

    def window_all(self, window_assigner: WindowAssigner) -> AllWindowedStream:
        """Gather the whole stream in windows; one subtask does it."""
        from engine.datastream.windowed_stream import AllWindowedStream

        return AllWindowedStream(self, window_assigner)

    def count_window_all(self, size: int, slide: int = 0) -> AllWindowedStream:
        """Gather runs of ``size`` elements; with ``slide``, one begins every ``slide`` elements (Flink's)."""
        from engine.time.assigners import count_windows

        return self.window_all(count_windows(size, slide))

    def join(self, other: DataStream) -> JoinedStreams:
        """Join by key and window: ``.where(k1).equal_to(k2).window(w).apply(f)`` (Flink's Java API)."""
        from engine.datastream.windowed_stream import JoinedStreams

        return JoinedStreams(self, other)

    def co_group(self, other: DataStream) -> CoGroupedStreams:
        """Group both streams by key and window: ``.where(k1).equal_to(k2).window(w).apply(f)`` (Flink's Java API)."""
        from engine.datastream.windowed_stream import CoGroupedStreams

        return CoGroupedStreams(self, other)

    def regular_join(
        self,
        other: DataStream,
        left_key: Any = None,
        right_key: Any = None,
        how: str = "inner",
        *,
        output: Callable[[Any, Any], Any] | None = None,
        condition: Callable[[Any, Any], bool] | None = None,
        state_ttl: Any = None,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Join all records of one key, without a window (ours, not PyFlink's; SQL's JOIN).

        Keys: as of ``key_by``, or a list of fields; not needed for keyed streams. A key that is null matches none.
        ``how``: "inner", "left", "right" or "full"; outer joins give a changelog: Rows with a RowKind. ``output``:
        (left, right) → result, by default the fields of both one after the other. ``condition``: (left, right) →
        whether they match. State grows with both streams unless ``state_ttl`` (a Time or Duration) limits it.
        """
        from engine.datastream.changelogs import regular_join

        return regular_join(
            (self, other),
            (left_key, right_key),
            how,
            output=output,
            condition=condition,
            state_ttl=state_ttl,
            output_type=output_type,
        )

    # --- several streams -----------------------------------------------------------------------------------------

    def union(self, *streams: DataStream) -> DataStream:
        members = [member for stream in (self, *streams) for member in stream._members]
        return DataStream(self._env, *members)

    def connect(self, ds: Any) -> Any:
        """Return ConnectedStreams of this and another stream, or with a BroadcastStream a BroadcastConnectedStream."""
        from engine.datastream.broadcast_stream import BroadcastConnectedStream, BroadcastStream

        if isinstance(ds, BroadcastStream):
            return BroadcastConnectedStream(self, ds, ds.broadcast_state_descriptors)
        if not isinstance(ds, DataStream):
            raise ProgramError(f"connect({ds!r:.80}): expected a DataStream or a BroadcastStream.")
        return ConnectedStreams(self, ds)

    def get_side_output(self, output_tag: OutputTag) -> DataStream:
        """Return what this operator yields with that tag."""
        if not isinstance(output_tag, OutputTag):
            raise ProgramError(f"get_side_output({output_tag!r:.80}): expected an OutputTag.")
        for member in self._members:
            if isinstance(member.node.spec, _WITHOUT_SIDE_OUTPUTS):
                raise ProgramError(
                    f"get_side_output(…): {member.node.name!r} has no side outputs. They come from process functions, "
                    "window functions and late records."
                )
        tag, side_type = output_tag.tag_id, output_tag.type_info
        members = [Member(m.node, side_tag=tag, side_type=side_type) for m in self._members]
        return SideOutputDataStream(self._env, *members)

    # --- how records travel --------------------------------------------------------------------------------------

    def _ship(self, partitioning: Partitioning) -> DataStream:
        return DataStream(self._env, *(replace(m, partitioning=partitioning) for m in self._members))

    def key_by(self, key_selector: Any, key_type: TypeInformation | None = None) -> KeyedStream:
        """Partition by key: a function, a KeySelector, a field's index or its name."""
        from engine.datastream.keyed_stream import KeyedStream

        selector = as_key_selector(key_selector)
        check_key_type(selector, key_type, self._output_type)
        return KeyedStream(self, selector, key_type)

    def shuffle(self) -> DataStream:
        return self._ship(Partitioning(ShipStrategy.SHUFFLE))

    def rescale(self) -> DataStream:
        return self._ship(Partitioning(ShipStrategy.RESCALE))

    def rebalance(self) -> DataStream:
        return self._ship(Partitioning(ShipStrategy.REBALANCE))

    def forward(self) -> DataStream:
        return self._ship(Partitioning(ShipStrategy.FORWARD))

    def global_(self) -> DataStream:
        """Send every record to the first subtask of the next operator."""
        return self._ship(Partitioning(ShipStrategy.GLOBAL))

    def broadcast(
        self,
        broadcast_state_descriptor: MapStateDescriptor | None = None,
        *other_broadcast_state_descriptors: MapStateDescriptor,
    ) -> Any:
        """Send every record to all subtasks of the next operator. With descriptors: return a BroadcastStream, whose
        elements may change the broadcast states of those names; ``connect`` another stream with it."""
        if broadcast_state_descriptor is None and not other_broadcast_state_descriptors:
            return self._ship(Partitioning(ShipStrategy.BROADCAST))
        from engine.datastream.broadcast_stream import BroadcastStream

        return BroadcastStream(self, (broadcast_state_descriptor, *other_broadcast_state_descriptors))

    def partition_custom(self, partitioner: Any, key_selector: Any) -> DataStream:
        return self._ship(Partitioning(ShipStrategy.CUSTOM, as_key_selector(key_selector), partitioner))

    # --- sinks ---------------------------------------------------------------------------------------------------

    def _sink(self, name: str, spec: OperatorSpec) -> DataStreamSink:
        edges = [member.edge() for member in self._members]
        node = Transformation(name=name, spec=spec, inputs=edges, kind="Sink", is_sink=True)
        self._env._add_sink(node)
        return DataStreamSink(node)

    def print(self, sink_identifier: str | None = None) -> DataStreamSink:
        """Write each record to the TaskManager's standard output (the terminal, in a local run)."""
        return self._sink("Print to Std. Out", PrintSpec(sink_identifier or "", False, self._output_type))

    def print_to_err(self, sink_identifier: str | None = None) -> DataStreamSink:
        return self._sink("Print to Std. Err", PrintSpec(sink_identifier or "", True, self._output_type))

    def add_sink(self, sink_func: Any) -> DataStreamSink:
        """Hand each record to a ``SinkFunction`` written in Python, or to a plain function of one argument."""
        return self._sink("Unnamed", _sink_spec(sink_func, self._output_type))

    def sink_to(self, sink: Any) -> DataStreamSink:
        """Hand the records to a sink such as ``FileSink``."""
        return self._sink("Writer", _sink_spec(sink, self._output_type))

    def write_as_text(self, path: str, write_mode: WriteMode = WriteMode.NO_OVERWRITE) -> DataStreamSink:
        """Write one line a record: a file if this sink's parallelism is 1, else a folder of files 1, 2, …"""
        return self._sink("Text Sink", TextFileSinkSpec(path, write_mode, self._output_type))

    def write_as_csv(
        self,
        path: str,
        write_mode: WriteMode = WriteMode.NO_OVERWRITE,
        row_delimiter: str = "\n",
        field_delimiter: str = ",",
    ) -> DataStreamSink:
        """Write tuples or Rows as CSV; file or folder as in ``write_as_text``."""
        return self._sink("CSV Sink", CsvFileSinkSpec(path, row_delimiter, field_delimiter, write_mode))

    def execute_and_collect(
        self, job_execution_name: str | None = None, limit: int | None = None
    ) -> CloseableIterator[Any] | list[Any]:
        """Run the program and bring this stream's records here: an iterator, or a list of ``limit`` at most."""
        uid = f"collect-{secrets.token_hex(8)}"
        sink = self._sink("Collect Stream Sink", CollectSinkSpec())
        sink._node.uid = uid
        sink._node.parallelism = 1
        from engine.client.executors import execute_async

        try:
            job_graph, paths = self._env._build(job_execution_name)
            self._env._sinks.clear()
            client = execute_async(job_graph, paths, self._env._config)
        except EngineError as error:
            raise told_briefly(error) from error.__cause__
        results: CloseableIterator[Any] = CloseableIterator(client, operator_id_of(job_graph, uid))
        if limit is None:
            return results
        with results:
            return list(itertools.islice(results, limit))


def operator_id_of(job_graph: JobGraph, uid: str) -> OperatorID:
    """Return the id of the operator with that uid."""
    operators = (info for vertex in job_graph.vertices for info in vertex.operators)
    return next(info.operator_id for info in operators if info.uid == uid)


def _sink_spec(sink: Any, type_info: TypeInformation | None) -> OperatorSpec:
    to_spec = getattr(sink, "to_spec", None)
    if to_spec is not None and not isinstance(sink, type):
        spec: OperatorSpec = to_spec(type_info)
        return spec
    if isinstance(sink, SinkFunction) or (callable(sink) and not isinstance(sink, type)):
        return FunctionSinkSpec(sink)
    raise ProgramError(
        f"{sink!r} is not a sink; expected FileSink.…build(), a SinkFunction or a function of one argument."
    )


def _check_function(func: Any, method: str) -> None:
    if isinstance(func, type) and issubclass(func, Function):
        raise ProgramError(f"{method}({func.__name__}): got a class; pass an object of it: {func.__name__}().")
    if isinstance(func, Function):
        if not hasattr(func, method):
            raise ProgramError(f"{method}({type(func).__name__}()): the object has no method {method}().")
    elif not callable(func):
        raise ProgramError(f"{method}({func!r}): expected a function or an object with {method}().")
    called = getattr(func, method) if isinstance(func, Function) else func
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise ProgramError(
            f"{method}({getattr(func, '__name__', type(func).__name__)}): an async function, which nobody would await. "
            "Pass a plain function; it may use asyncio.run inside."
        )


#: Methods of functions that take part in ``check_kind``, which the engine calls.
_CALLED = (
    *("process_element", "process_element1", "process_element2", "process_broadcast_element", "on_timer"),
    *("map1", "map2", "flat_map1", "flat_map2"),
)


def check_kind(func: Any, method: str, *kinds: type) -> None:
    """Raise ProgramError unless ``func`` is an object of one of the function classes."""
    if isinstance(func, type):
        raise ProgramError(f"{method}({func.__name__}): got a class; pass an object of it: {func.__name__}().")
    if not isinstance(func, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ProgramError(f"{method}({func!r:.80}): expected a {expected} object.")
    for name in _CALLED:
        called = getattr(func, name, None)
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise ProgramError(
                f"{method}({type(func).__name__}()): {name} is async, and nobody would await it. "
                "Make it a plain method; it may use asyncio.run inside."
            )


class SideOutputDataStream(DataStream):
    """A side output: a stream like any other, but the operator that it comes from has its settings elsewhere."""

    def _settings_not_here(self, *args: Any, **kwargs: Any) -> Any:
        raise ProgramError("A side output has no settings of its own; set name, uid, parallelism… on the main stream.")

    name = uid = set_uid_hash = set_parallelism = set_max_parallelism = force_non_parallel = _settings_not_here
    set_buffer_timeout = start_new_chain = disable_chaining = slot_sharing_group = _settings_not_here
    set_description = _settings_not_here


class DataStreamSink(_Named):
    """A sink in the program; settings only."""

    def __init__(self, node: Transformation) -> None:
        self._node = node


class ConnectedStreams:
    """Two streams of different types that one operator reads."""

    def __init__(self, stream1: DataStream, stream2: DataStream) -> None:
        self.stream1 = stream1
        self.stream2 = stream2

    def key_by(
        self, key_selector1: Any, key_selector2: Any, key_type: TypeInformation | None = None
    ) -> ConnectedStreams:
        return ConnectedStreams(
            self.stream1.key_by(key_selector1, key_type), self.stream2.key_by(key_selector2, key_type)
        )

    def _apply(self, name: str, spec: OperatorSpec, output_type: TypeInformation | None) -> DataStream:
        edges = [member.edge(0) for member in self.stream1._members]
        edges += [member.edge(1) for member in self.stream2._members]
        node = Transformation(name=name, spec=spec, inputs=edges, output_type=output_type)
        return DataStream(self.stream1._env, node)

    def _key_selectors(self) -> tuple[Any, Any] | None:
        """Return both key selectors, or None when the streams are not keyed both."""
        from engine.datastream.keyed_stream import KeyedStream

        if isinstance(self.stream1, KeyedStream) and isinstance(self.stream2, KeyedStream):
            return self.stream1._key_selector, self.stream2._key_selector
        return None

    def map(self, func: CoMapFunction, output_type: TypeInformation | None = None) -> DataStream:
        check_kind(func, "map", CoMapFunction)
        keys = self._key_selectors()
        if keys is not None and keeps_state(func):
            return self._apply("Co-Map", CoProcessSpec(func, keys, output_type, "map"), output_type)
        return self._apply("Co-Map", CoMapSpec(func), output_type)

    def flat_map(self, func: CoFlatMapFunction, output_type: TypeInformation | None = None) -> DataStream:
        check_kind(func, "flat_map", CoFlatMapFunction)
        keys = self._key_selectors()
        if keys is not None and keeps_state(func):
            return self._apply("Co-Flat Map", CoProcessSpec(func, keys, output_type, "flat_map"), output_type)
        return self._apply("Co-Flat Map", CoFlatMapSpec(func), output_type)

    def process(
        self, func: CoProcessFunction | KeyedCoProcessFunction, output_type: TypeInformation | None = None
    ) -> DataStream:
        """Hand the records of both streams to one function; on keyed streams they share state and timers of a key."""
        check_kind(func, "process", CoProcessFunction, KeyedCoProcessFunction)
        keys = self._key_selectors()
        if keys is None and isinstance(func, KeyedCoProcessFunction):
            raise ProgramError(
                f"process({type(func).__name__}()): a KeyedCoProcessFunction needs both streams keyed: "
                "a.connect(b).key_by(k1, k2).process(…)."
            )
        name = "Co-Process" if keys is None else "Co-Keyed-Process"
        return self._apply(name, CoProcessSpec(func, keys, output_type), output_type)


class CloseableIterator(Generic[T]):
    """Records of a running job. Use with ``with``; closing it early cancels the job."""

    def __init__(self, client: JobClient, operator_id: OperatorID) -> None:
        self._client = client
        self._rows: Iterator[T] = itertools.chain.from_iterable(client.collect_batches(operator_id))
        self._ended = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self) -> T:
        """Return the next record. Raises StopIteration at the end, JobExecutionError if the job failed."""
        try:
            return next(self._rows)
        except StopIteration:
            self._ended = True
            raise
        except EngineError as error:
            raise told_briefly(error) from error.__cause__
        except KeyboardInterrupt:
            self.close()
            raise

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._client.cancel().result()

    def __enter__(self) -> CloseableIterator[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def get_job_client(self) -> JobClient:
        return self._client


#: Streams that stand in modules of their own, and that PyFlink's programs import from here.
_ELSEWHERE = {
    "AllWindowedStream": "windowed_stream",
    "BroadcastConnectedStream": "broadcast_stream",
    "BroadcastStream": "broadcast_stream",
    "KeyedStream": "keyed_stream",
    "WindowedStream": "windowed_stream",
}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"engine.datastream.{_ELSEWHERE[name]}"), name)
