"""DataSet: what a program can say about bounded data. Names of Flink's Java API in snake_case, and of its old Python
API.

A DataSet is a handle on a node of the program; nothing runs before ``execute``, ``print``, ``collect`` or
``count``. Grouping, joining and iterating stand in ``groupings``, ``joins`` and ``iteration``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from engine.connectors.file_sinks import CsvFileSinkSpec, TextFileSinkSpec, WriteMode
from engine.connectors.simple import DiscardSpec, FunctionSinkSpec, PrintSpec
from engine.core.errors import ConfigError, ProgramError
from engine.core.printing import format_record
from engine.core.type_info import TupleTypeInfo, TypeInformation
from engine.dataset.keys import aggregation_field, as_selector, is_ascending
from engine.dataset.plan import FORWARD, GLOBAL, REBALANCE, Node, Port, hash_by
from engine.dataset.vocabulary import Aggregation, JoinHint, Order
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.base import OperatorSpec
from engine.operators.batch_functions import FlatMapWithCollector, method_of, takes_collector
from engine.operators.batch_keys import whole_record
from engine.operators.batch_reduce import DistinctFold, ExtremeFold, FieldsFold, Fold, FoldSpec, ReduceFold
from engine.operators.batch_simple import CountSpec, NumberRows, PassSpec
from engine.operators.functions import Function
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.stateless import FilterSpec, FlatMapSpec, MapSpec, ProjectSpec
from engine.state.key_groups import MAX_PARALLELISM_MAX

if TYPE_CHECKING:
    from engine.dataset.environment import ExecutionEnvironment
    from engine.dataset.groupings import UnsortedGrouping
    from engine.dataset.iteration import IterativeDataSet
    from engine.dataset.joins import CoGroupBuilder, CrossDataSet, JoinBuilder

__all__ = ["AggregateDataSet", "DataSet", "DataSink", "SortedDataSet"]

#: Records print as Flink prints them, tuples as (a,b), whatever they are.
PRINTED_AS: TypeInformation = TupleTypeInfo([])


def require(what: str, function: Any, *methods: str) -> Any:
    """Return the function if it can be called. Raises ProgramError that names the operation otherwise."""
    try:
        method_of(function, *methods)
    except TypeError as error:
        raise ProgramError(f"{what}: {error}") from error
    return function


class DataSet:
    """Bounded data. Several ports are a union."""

    def __init__(self, env: ExecutionEnvironment, *ports: Port) -> None:
        self._env = env
        self._ports = ports

    # --- building --------------------------------------------------------------------------------------------------

    def inputs(self, partitioning: Partitioning = FORWARD, index: int = 0) -> list[tuple[int, Port, Partitioning]]:
        """Return the connections from here to input ``index`` of a node."""
        return [(index, port, partitioning) for port in self._ports]

    def derive(
        self, name: str, spec: OperatorSpec, partitioning: Partitioning = FORWARD, *, single: bool = False
    ) -> DataSet:
        """Return the DataSet of a new node that reads this one. ``single``: it runs once, whatever the parallelism."""
        node = Node(name, spec, self.inputs(partitioning), forced_non_parallel=single)
        return DataSet(self._env, Port(node))

    def combined(self, name: str, spec: OperatorSpec) -> DataSet:
        """Return the DataSet of a node that works where the records are, before they are exchanged."""
        node = Node(name, spec, self.inputs(), follows=self._ports[0].node)
        return DataSet(self._env, Port(node))

    def _own_node(self) -> Node:
        if len(self._ports) > 1 or self._ports[0].side_tag is not None:
            node = Node("Union", PassSpec(), self.inputs())
            self._ports = (Port(node),)
        return self._ports[0].node

    def check_same_env(self, other: Any, what: str) -> None:
        if not isinstance(other, DataSet):
            raise ProgramError(f"{what}: expected a DataSet, got {other!r}.")
        if other._env is not self._env:
            raise ProgramError(f"{what}: the two DataSets belong to different environments.")

    def set_parallelism(self, parallelism: int) -> Self:
        if not isinstance(parallelism, int) or not 1 <= parallelism <= MAX_PARALLELISM_MAX:
            raise ConfigError(f"set_parallelism({parallelism!r}): expected a number from 1 to {MAX_PARALLELISM_MAX}.")
        self._own_node().parallelism = parallelism
        return self

    def get_parallelism(self) -> int:
        """Return the operator's own parallelism, or the environment's."""
        node = self._ports[0].node
        return 1 if node.forced_non_parallel else node.parallelism or self._env.get_parallelism()

    set_degree_of_parallelism = set_parallelism
    get_degree_of_parallelism = get_parallelism

    def name(self, name: str) -> Self:
        """Name the operator, for plans, the dashboard and error messages."""
        self._own_node().name = name
        return self

    def with_broadcast_set(self, data: DataSet, name: str) -> Self:
        """Give the function all of ``data``: ``runtime_context.get_broadcast_variable(name)`` in its ``open``."""
        self.check_same_env(data, "with_broadcast_set")
        node = self._own_node()
        if node.spec.num_inputs == 0:
            raise ProgramError(f"with_broadcast_set: {node.name!r} is a source; only operators have broadcast sets.")
        if any(known == name for known, _ in node.broadcast):
            raise ProgramError(f"with_broadcast_set: {node.name!r} already has a broadcast set {name!r}.")
        node.broadcast.append((name, data._ports))
        return self

    def get_execution_environment(self) -> ExecutionEnvironment:
        return self._env

    # --- record by record ------------------------------------------------------------------------------------------

    def map(self, operator: Callable[[Any], Any] | Function) -> DataSet:
        return self.derive("Map", MapSpec(require("map", operator, "map")))

    def flat_map(self, operator: Callable[..., Any] | Function) -> DataSet:
        """Any number of results a record: returned as an iterable, or given to a collector (two parameters)."""
        require("flat_map", operator, "flat_map")
        with_collector = takes_collector(method_of(operator, "flat_map"), 1)
        return self.derive("FlatMap", FlatMapSpec(FlatMapWithCollector(operator) if with_collector else operator))

    def filter(self, operator: Callable[[Any], bool] | Function) -> DataSet:
        return self.derive("Filter", FilterSpec(require("filter", operator, "filter")))

    def map_partition(self, operator: Callable[..., Any] | Function) -> DataSet:
        """Call a function once per subtask with an iterator over all its records."""
        from engine.operators.batch_group import GroupReduceSpec

        require("map_partition", operator, "map_partition")
        spec = GroupReduceSpec(None, operator, methods=("map_partition",), call_on_empty=True)
        return self.derive("MapPartition", spec)

    def project(self, *fields: int) -> DataSet:
        """Keep these fields of tuples, in this order."""
        if not fields or not all(isinstance(f, int) and not isinstance(f, bool) and f >= 0 for f in fields):
            raise ProgramError(f"project{fields!r}: expected field positions such as project(0, 2).")
        return self.derive("Projection", ProjectSpec(tuple(fields)))

    # --- groups ----------------------------------------------------------------------------------------------------

    def group_by(self, *keys: Any) -> UnsortedGrouping:
        """Group by field positions, names, or a function record → key."""
        from engine.dataset.groupings import UnsortedGrouping

        return UnsortedGrouping(self, as_selector(keys, "group_by"))

    def fold(self, name: str, fold: Fold, selector: Any = None, *, keeps_key: bool = False) -> DataSet:
        """Return the DataSet of a combiner, an exchange and a final fold. ``keeps_key``: the folded rows have the key
        of their parts, so it need not travel beside them."""
        pairs = not keeps_key and selector is not None
        combiner = FoldSpec(selector, fold, writes_pairs=pairs, is_combiner=True)
        final = FoldSpec(selector, fold, reads_pairs=pairs)
        partial = self.combined(f"Combine ({name})", combiner)
        if selector is None:
            return partial.derive(name, final, GLOBAL, single=True)
        return partial.derive(name, final, hash_by(FieldKey(0) if pairs else selector))

    def reduce(self, operator: Callable[[Any, Any], Any] | Function) -> DataSet:
        """Fold all records into one."""
        return self.fold("Reduce", ReduceFold(require("reduce", operator, "reduce")))

    def reduce_group(self, operator: Callable[..., Any] | Function, combinable: bool = False) -> DataSet:
        """Call a function once with an iterator over all records."""
        return reduce_groups(self, None, (), operator, combinable)

    group_reduce = reduce_group

    def combine_group(self, operator: Callable[..., Any] | Function) -> DataSet:
        """Call a function with the records of each subtask, possibly in several parts."""
        from engine.operators.batch_group import GroupCombineSpec

        require("combine_group", operator, "combine")
        return self.combined("GroupCombine", GroupCombineSpec(None, operator))

    def aggregate(self, aggregation: Aggregation | str, field: int | str) -> AggregateDataSet:
        return AggregateDataSet(self, None, ((to_aggregation(aggregation), aggregation_field(field, "aggregate")),))

    def sum(self, field: int | str) -> AggregateDataSet:
        return self.aggregate(Aggregation.SUM, field)

    def min(self, field: int | str) -> AggregateDataSet:
        return self.aggregate(Aggregation.MIN, field)

    def max(self, field: int | str) -> AggregateDataSet:
        return self.aggregate(Aggregation.MAX, field)

    def min_by(self, *fields: int | str) -> DataSet:
        """Return the record with the smallest values of the fields."""
        return self.fold("MinBy", ExtremeFold(extreme_fields(fields, "min_by"), largest=False))

    def max_by(self, *fields: int | str) -> DataSet:
        return self.fold("MaxBy", ExtremeFold(extreme_fields(fields, "max_by"), largest=True))

    def distinct(self, *fields: Any) -> DataSet:
        """Keep one record of each key; without fields one of each equal record."""
        selector = as_selector(fields, "distinct") if fields else whole_record
        return self.fold("Distinct", DistinctFold(), selector, keeps_key=True)

    def first(self, n: int) -> DataSet:
        """Keep any ``n`` records."""
        from engine.operators.batch_group import FirstInGroupSpec

        spec = FirstInGroupSpec(None, checked_count(n))
        return self.combined(f"First {n}", spec).derive(f"First {n}", spec, GLOBAL, single=True)

    # --- two inputs ------------------------------------------------------------------------------------------------

    def join(self, other: DataSet, strategy: JoinHint = JoinHint.OPTIMIZER_CHOOSES) -> JoinBuilder:
        """Begin an equi-join: ``a.join(b).where(0).equal_to(1)``, then ``.using(function)``, ``.project_first(…)`` or
        nothing for pairs."""
        return self._join(other, strategy, "join", False, False)

    def join_with_tiny(self, other: DataSet) -> JoinBuilder:
        """Join where ``other`` is small: it is sent to all subtasks."""
        return self._join(other, JoinHint.BROADCAST_HASH_SECOND, "join_with_tiny", False, False)

    def join_with_huge(self, other: DataSet) -> JoinBuilder:
        """Join where ``other`` is large: this DataSet is sent to all subtasks."""
        return self._join(other, JoinHint.BROADCAST_HASH_FIRST, "join_with_huge", False, False)

    def left_outer_join(self, other: DataSet, strategy: JoinHint = JoinHint.OPTIMIZER_CHOOSES) -> JoinBuilder:
        """As ``join``; records of this DataSet without a partner are joined with None."""
        return self._join(other, strategy, "left_outer_join", True, False)

    def right_outer_join(self, other: DataSet, strategy: JoinHint = JoinHint.OPTIMIZER_CHOOSES) -> JoinBuilder:
        return self._join(other, strategy, "right_outer_join", False, True)

    def full_outer_join(self, other: DataSet, strategy: JoinHint = JoinHint.OPTIMIZER_CHOOSES) -> JoinBuilder:
        return self._join(other, strategy, "full_outer_join", True, True)

    def _join(self, other: DataSet, hint: JoinHint, what: str, keep_first: bool, keep_second: bool) -> JoinBuilder:
        from engine.dataset.joins import JoinBuilder

        self.check_same_env(other, what)
        return JoinBuilder(self, other, what=what, hint=hint, keep_first=keep_first, keep_second=keep_second)

    def co_group(self, other: DataSet) -> CoGroupBuilder:
        """Begin a co-group: ``a.co_group(b).where(0).equal_to(0).using(function)``."""
        from engine.dataset.joins import CoGroupBuilder

        self.check_same_env(other, "co_group")
        return CoGroupBuilder(self, other)

    def cross(self, other: DataSet) -> CrossDataSet:
        """Pair every record with every record of ``other``; ``.using(function)`` or nothing for pairs."""
        from engine.dataset.joins import CrossDataSet

        self.check_same_env(other, "cross")
        return CrossDataSet.of(self, other, 1)

    cross_with_tiny = cross

    def cross_with_huge(self, other: DataSet) -> CrossDataSet:
        from engine.dataset.joins import CrossDataSet

        self.check_same_env(other, "cross_with_huge")
        return CrossDataSet.of(self, other, 0)

    def union(self, other: DataSet) -> DataSet:
        """All records of both."""
        self.check_same_env(other, "union")
        both: list[Port] = []
        for port in (*self._ports, *other._ports):
            # A connection is one per producer: a DataSet united with itself must come through a node of its own.
            again = any(port.node is known.node and port.side_tag == known.side_tag for known in both)
            both.append(Port(Node("Copy", PassSpec(), [(0, port, FORWARD)], follows=port.node)) if again else port)
        return DataSet(self._env, *both)

    # --- where records are -----------------------------------------------------------------------------------------

    def rebalance(self) -> DataSet:
        """Spread the records evenly."""
        return self.derive("Rebalance", PassSpec(), REBALANCE)

    def partition_by_hash(self, *keys: Any) -> DataSet:
        """Bring records of one key into one subtask."""
        return self.derive("Partition", PassSpec(), hash_by(as_selector(keys, "partition_by_hash")))

    def partition_custom(self, partitioner: Callable[[Any, int], int] | Function, *keys: Any) -> DataSet:
        """Send a record to subtask ``partitioner(key, number of subtasks)``."""
        require("partition_custom", partitioner, "partition")
        how = Partitioning(ShipStrategy.CUSTOM, as_selector(keys, "partition_custom"), partitioner)
        return self.derive("Partition", PassSpec(), how)

    def sort_partition(self, field: Any, order: Order = Order.ASCENDING) -> SortedDataSet:
        """Sort each subtask's records; call again to sort by a further field."""
        selector = as_selector((field,), "sort_partition")
        return SortedDataSet(self, ((selector, is_ascending(order, "sort_partition")),))

    # --- numbers ---------------------------------------------------------------------------------------------------

    def count_elements_per_partition(self) -> DataSet:
        """(subtask, number of its records)."""
        return self.combined("Count", CountSpec())

    def zip_with_index(self) -> DataSet:
        """(index, record), indexes consecutive from 0 and in order within a subtask."""
        numbered = self.combined("ZipWithIndex", MapSpec(NumberRows()))
        return numbered.with_broadcast_set(self.count_elements_per_partition(), "counts")

    # --- iterations ------------------------------------------------------------------------------------------------

    def iterate(self, max_iterations: int) -> IterativeDataSet:
        """Begin a bulk iteration: ``loop = d.iterate(10)``, then ``loop.close_with(loop.map(…))`` is the result."""
        from engine.dataset.iteration import IterativeDataSet

        return IterativeDataSet.begin(self, max_iterations)

    # --- results ---------------------------------------------------------------------------------------------------

    def _sink(self, name: str, spec: OperatorSpec) -> DataSink:
        node = Node(name, spec, self.inputs(), follows=self._ports[0].node, kind="Sink", is_sink=True)
        self._env.add_sink(node)
        return DataSink(node)

    def write_as_text(self, path: str, write_mode: WriteMode = WriteMode.NO_OVERWRITE) -> DataSink:
        """Write each record as a line: one file with parallelism 1, else a folder of files 1, 2, …"""
        return self._sink(f"TextOutputFormat ({path})", TextFileSinkSpec(path, write_mode, PRINTED_AS))

    def write_as_formatted_text(
        self, path: str, formatter: Callable[[Any], str], write_mode: WriteMode = WriteMode.NO_OVERWRITE
    ) -> DataSink:
        formatted = self.combined("Format", MapSpec(require("write_as_formatted_text", formatter, "format")))
        return formatted.write_as_text(path, write_mode)

    def write_as_csv(
        self,
        path: str,
        row_delimiter: str = "\n",
        field_delimiter: str = ",",
        write_mode: WriteMode = WriteMode.NO_OVERWRITE,
    ) -> DataSink:
        """Write tuples or Rows, one per row."""
        spec = CsvFileSinkSpec(path, row_delimiter, field_delimiter, write_mode)
        return self._sink(f"CsvOutputFormat ({path})", spec)

    def write_text(self, path: str, write_mode: WriteMode = WriteMode.NO_OVERWRITE) -> DataSink:
        return self.write_as_text(path, write_mode)

    def write_csv(
        self,
        path: str,
        line_delimiter: str = "\n",
        field_delimiter: str = ",",
        write_mode: WriteMode = WriteMode.NO_OVERWRITE,
    ) -> DataSink:
        return self.write_as_csv(path, line_delimiter, field_delimiter, write_mode)

    def output(self, sink: Callable[[Any], None] | Function | bool | None = None, to_error: bool = False) -> DataSink:
        """Give each record to a SinkFunction or callable; without one, print it in the task (the old Python API)."""
        if sink is None or isinstance(sink, bool):
            return self.print_on_task_manager(to_error=to_error or bool(sink))
        return self._sink("Sink", FunctionSinkSpec(require("output", sink, "invoke")))

    def output_to_nothing(self) -> DataSink:
        """Compute and throw away, as Java's DiscardingOutputFormat."""
        return self._sink("Discard", DiscardSpec())

    def print_on_task_manager(self, prefix: str | None = None, *, to_error: bool = False) -> DataSink:
        """Print where the records are: the TaskManager's .out, or this terminal in a local run."""
        return self._sink("Print", PrintSpec(prefix, to_error, PRINTED_AS))

    def print(self) -> None:
        """Run the program with all sinks defined so far, and print this DataSet here."""
        for record in self.collect():
            print(format_record(record, PRINTED_AS))

    def print_to_err(self) -> None:
        import sys

        for record in self.collect():
            print(format_record(record, PRINTED_AS), file=sys.stderr)

    def collect(self) -> list[Any]:
        """Run the program with all sinks defined so far, and return the records of this DataSet."""
        return self._env.collect(self)

    def count(self) -> int:
        """Run the program with all sinks defined so far, and return the number of records of this DataSet."""
        return sum(count for _, count in self._env.collect(self.count_elements_per_partition()))


class DataSink:
    """A sink of the program; its parallelism and name can be set."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def set_parallelism(self, parallelism: int) -> DataSink:
        if not isinstance(parallelism, int) or not 1 <= parallelism <= MAX_PARALLELISM_MAX:
            raise ConfigError(f"set_parallelism({parallelism!r}): expected a number from 1 to {MAX_PARALLELISM_MAX}.")
        self._node.parallelism = parallelism
        return self

    set_degree_of_parallelism = set_parallelism

    def name(self, name: str) -> DataSink:
        self._node.name = name
        return self


class AggregateDataSet(DataSet):
    """Result of ``sum``, ``min``, ``max``, ``aggregate``; ``and_agg`` adds another field."""

    def __init__(self, source: DataSet, selector: Any, aggregations: tuple[tuple[str, int | str], ...]) -> None:
        self._source = source
        self._selector = selector
        self._aggregations = aggregations
        names = ", ".join(f"{kind}({field})" for kind, field in aggregations)
        key_fields: tuple[Any, ...] = ()
        match selector:
            case FieldKey(field):
                key_fields = (field,)
            case ComposedKey(fields):
                key_fields = fields
        keeps_key = bool(key_fields) and not {field for _, field in aggregations} & set(key_fields)
        folded = source.fold(f"Aggregate [{names}]", FieldsFold(aggregations), selector, keeps_key=keeps_key)
        super().__init__(source._env, *folded._ports)

    def and_agg(self, aggregation: Aggregation | str, field: int | str) -> AggregateDataSet:
        """Aggregate a further field in the same step."""
        more = (to_aggregation(aggregation), aggregation_field(field, "and_agg"))
        return AggregateDataSet(self._source, self._selector, (*self._aggregations, more))

    and_ = and_agg

    def and_sum(self, field: int | str) -> AggregateDataSet:
        return self.and_agg(Aggregation.SUM, field)

    def and_min(self, field: int | str) -> AggregateDataSet:
        return self.and_agg(Aggregation.MIN, field)

    def and_max(self, field: int | str) -> AggregateDataSet:
        return self.and_agg(Aggregation.MAX, field)


class SortedDataSet(DataSet):
    """Result of ``sort_partition``; sorting it again adds a field to its order."""

    def __init__(self, source: DataSet, fields: tuple[tuple[Any, bool], ...]) -> None:
        from engine.operators.batch_sort import SortPartitionSpec

        self._source = source
        self._fields = fields
        node = Node("SortPartition", SortPartitionSpec(fields), source.inputs(), follows=source._ports[0].node)
        super().__init__(source._env, Port(node))

    def sort_partition(self, field: Any, order: Order = Order.ASCENDING) -> SortedDataSet:
        selector = as_selector((field,), "sort_partition")
        added = SortedDataSet(self._source, (*self._fields, (selector, is_ascending(order, "sort_partition"))))
        added._own_node().parallelism = self._own_node().parallelism
        return added


def reduce_groups(
    data: DataSet, selector: Any, order: tuple[tuple[Any, bool], ...], operator: Any, combinable: bool
) -> DataSet:
    """Return ``reduce_group`` of a grouped (or whole) DataSet, with a combiner where the function has one."""
    from engine.operators.batch_group import GroupCombineSpec, GroupReduceSpec

    require("reduce_group", operator, "reduce", "reduce_group")
    has_combine = isinstance(operator, Function) and hasattr(operator, "combine")
    if combinable or has_combine:
        combiner = GroupCombineSpec(selector, operator, order, ("combine", "reduce", "reduce_group"))
        data = data.combined("Combine (GroupReduce)", combiner)
    spec = GroupReduceSpec(selector, operator, order)
    if selector is None:
        return data.derive("GroupReduce", spec, GLOBAL, single=True)
    return data.derive("GroupReduce", spec, hash_by(selector))


def checked_count(n: Any) -> int:
    if not isinstance(n, int) or n < 1:
        raise ProgramError(f"first({n!r}): expected a whole number of at least 1.")
    return n


def to_aggregation(aggregation: Any) -> str:
    try:
        return Aggregation(aggregation.lower() if isinstance(aggregation, str) else aggregation).value
    except ValueError:
        raise ProgramError(f"{aggregation!r} is not an aggregation; expected Aggregation.SUM, MIN or MAX.") from None


def extreme_fields(fields: tuple[Any, ...], what: str) -> tuple[int | str, ...]:
    if not fields:
        raise ProgramError(f"{what} needs at least one field, e.g. {what}(0).")
    return tuple(aggregation_field(field, what) for field in fields)
