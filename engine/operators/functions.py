"""What users implement: function interfaces and the RuntimeContext. Names and signatures are PyFlink's.

Not here: how they are run (``operators/stateless``, ``operators/aggregate``, ``operators/batch``).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any

from engine.core.errors import ProgramError
from engine.core.metrics import Accumulator, MetricGroup
from engine.state.backend import KeyedStateBackend
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateDescriptor,
    ValueStateDescriptor,
)
from engine.state.states import AggregatingState, ListState, MapState, ReducingState, ValueState

__all__ = [
    "AggregateFunction",
    "CoFlatMapFunction",
    "CoGroupFunction",
    "CoMapFunction",
    "CrossFunction",
    "FilterFunction",
    "FlatJoinFunction",
    "FlatMapFunction",
    "Function",
    "GroupCombineFunction",
    "GroupReduceFunction",
    "JoinFunction",
    "KeySelector",
    "KeyedStateStore",
    "MapFunction",
    "MapPartitionFunction",
    "Partitioner",
    "ReduceFunction",
    "RuntimeContext",
    "SinkFunction",
    "SourceFunction",
]


class KeyedStateStore(abc.ABC):
    """Gives a function its keyed state, by descriptor. Best asked in ``open``; values are those of the current key."""

    @abc.abstractmethod
    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState: ...

    @abc.abstractmethod
    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState: ...

    @abc.abstractmethod
    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState: ...

    @abc.abstractmethod
    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> ReducingState: ...

    @abc.abstractmethod
    def get_aggregating_state(self, state_descriptor: AggregatingStateDescriptor) -> AggregatingState: ...


class RuntimeContext(KeyedStateStore):
    """What a function may ask about the subtask that runs it. Made by the runtime, one per operator and subtask."""

    def __init__(
        self,
        *,
        task_name: str,
        subtask_index: int = 0,
        parallelism: int = 1,
        max_parallelism: int = 128,
        attempt_number: int = 0,
        job_parameters: dict[str, str] | None = None,
        metric_group: MetricGroup | None = None,
        cached_files: dict[str, str] | None = None,
    ) -> None:
        self._task_name = task_name
        self._subtask_index = subtask_index
        self._parallelism = parallelism
        self._max_parallelism = max_parallelism
        self._attempt_number = attempt_number
        self._job_parameters = job_parameters or {}
        self._metric_group = metric_group or MetricGroup()
        self._cached_files = cached_files or {}
        self._accumulators: dict[str, Accumulator] = {}
        self._broadcast_variables: dict[str, list[Any]] = {}
        #: set by operators whose input is keyed
        self._keyed_state: KeyedStateBackend | None = None
        #: set while a function is opened whose operator needs keyed state only if the function does
        self._open_keyed_state: Callable[[], KeyedStateBackend] | None = None

    def get_task_name(self) -> str:
        return self._task_name

    def get_number_of_parallel_subtasks(self) -> int:
        return self._parallelism

    def get_max_number_of_parallel_subtasks(self) -> int:
        return self._max_parallelism

    def get_index_of_this_subtask(self) -> int:
        """0-based."""
        return self._subtask_index

    def get_attempt_number(self) -> int:
        """0 for the first attempt."""
        return self._attempt_number

    def get_task_name_with_subtasks(self) -> str:
        return f"{self._task_name} ({self._subtask_index + 1}/{self._parallelism})"

    def get_job_parameter(self, key: str, default_value: str) -> str:
        return self._job_parameters.get(key, default_value)

    def get_metrics_group(self) -> MetricGroup:
        return self._metric_group

    def add_accumulator(self, name: str, accumulator: Accumulator) -> None:
        """Register ``accumulator``; the job's result has the merged value of all subtasks under ``name``.

        Raises: ValueError if the name is taken in this function.
        """
        if name in self._accumulators:
            raise ValueError(f"Accumulator {name!r} is already registered in this function.")
        self._accumulators[name] = accumulator

    def get_accumulator(self, name: str) -> Accumulator | None:
        return self._accumulators.get(name)

    def get_broadcast_variable(self, name: str) -> list[Any]:
        """Return the whole broadcast set ``name`` (DataSet API, ``with_broadcast_set``)."""
        if name not in self._broadcast_variables:
            known = sorted(self._broadcast_variables)
            raise KeyError(f"No broadcast set {name!r}; known: {known}. Add with_broadcast_set(ds, {name!r}).")
        return self._broadcast_variables[name]

    def get_cached_file(self, name: str) -> str:
        """Return the local path of a file registered with ``register_cached_file``."""
        if name not in self._cached_files:
            raise KeyError(f"No cached file {name!r}; known: {sorted(self._cached_files)}.")
        return self._cached_files[name]

    def _backend(self, descriptor: StateDescriptor) -> KeyedStateBackend:
        if self._keyed_state is None and self._open_keyed_state is not None:
            self._keyed_state = self._open_keyed_state()
        if self._keyed_state is None:
            name = getattr(descriptor, "name", descriptor)
            raise ProgramError(
                f"Keyed state {name!r} was asked for, but the records of this operator have no key: call key_by(...) "
                "before it (for a sink: keep the state in an operator before it)."
            )
        return self._keyed_state

    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState:
        """Return the value state of that name. Raises ProgramError when the operator's input is not keyed."""
        return self._backend(state_descriptor).value_state(state_descriptor)

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState:
        return self._backend(state_descriptor).list_state(state_descriptor)

    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState:
        return self._backend(state_descriptor).map_state(state_descriptor)

    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> ReducingState:
        return self._backend(state_descriptor).reducing_state(state_descriptor)

    def get_aggregating_state(self, state_descriptor: AggregatingStateDescriptor) -> AggregatingState:
        return self._backend(state_descriptor).aggregating_state(state_descriptor)


class Function(abc.ABC):
    """Base of user functions. ``open`` runs once in the subtask before any record, ``close`` once after the last,
    also when the task fails or is cancelled (unless the process had to be killed)."""

    def open(self, runtime_context: RuntimeContext) -> None:
        pass

    def close(self) -> None:
        pass


class MapFunction(Function):
    @abc.abstractmethod
    def map(self, value: Any) -> Any: ...


class FlatMapFunction(Function):
    @abc.abstractmethod
    def flat_map(self, value: Any) -> Iterable[Any] | None: ...


class FilterFunction(Function):
    @abc.abstractmethod
    def filter(self, value: Any) -> bool: ...


class ReduceFunction(Function):
    @abc.abstractmethod
    def reduce(self, value1: Any, value2: Any) -> Any: ...


class KeySelector(Function):
    @abc.abstractmethod
    def get_key(self, value: Any) -> Any: ...


class Partitioner(Function):
    @abc.abstractmethod
    def partition(self, key: Any, num_partitions: int) -> int: ...


class CoMapFunction(Function):
    @abc.abstractmethod
    def map1(self, value: Any) -> Any: ...

    @abc.abstractmethod
    def map2(self, value: Any) -> Any: ...


class CoFlatMapFunction(Function):
    @abc.abstractmethod
    def flat_map1(self, value: Any) -> Iterable[Any] | None: ...

    @abc.abstractmethod
    def flat_map2(self, value: Any) -> Iterable[Any] | None: ...


class AggregateFunction(Function):
    @abc.abstractmethod
    def create_accumulator(self) -> Any: ...

    @abc.abstractmethod
    def add(self, value: Any, accumulator: Any) -> Any: ...

    @abc.abstractmethod
    def get_result(self, accumulator: Any) -> Any: ...

    @abc.abstractmethod
    def merge(self, acc_a: Any, acc_b: Any) -> Any: ...


class SinkFunction(Function):
    """A sink written in Python: ``invoke`` gets each record (PyFlink's wraps Java; ours is the user's own class)."""

    @abc.abstractmethod
    def invoke(self, value: Any) -> None: ...


class SourceFunction(Function):
    """A source written in Python: ``run`` yields records until it returns or ``cancel`` is called; parallelism 1.

    After a restart it begins anew, unless it overrides ``snapshot_state`` and ``restore_state``::

        def run(self):
            while self.offset < 1000:
                self.offset += 1
                yield read_at(self.offset - 1)

        def snapshot_state(self):
            return self.offset

        def restore_state(self, state):
            self.offset = state
    """

    @abc.abstractmethod
    def run(self) -> Iterable[Any]: ...

    def cancel(self) -> None:
        pass

    def snapshot_state(self) -> Any:
        """Return from where to go on behind the record that ``run`` has just yielded. Called after each record, in the
        thread of ``run``: cheap, and a value that does not change afterwards (a number, a tuple; no list of yours)."""
        return None

    def restore_state(self, state: Any) -> None:
        """Called before ``run`` with what ``snapshot_state`` returned."""


# --- DataSet API; results are iterables, as in Flink's Python DataSet API, or a collector's calls ---------------------


class MapPartitionFunction(Function):
    @abc.abstractmethod
    def map_partition(self, values: Iterable[Any]) -> Iterable[Any] | None: ...


class GroupReduceFunction(Function):
    @abc.abstractmethod
    def reduce(self, values: Iterable[Any]) -> Iterable[Any] | None: ...


class GroupCombineFunction(Function):
    @abc.abstractmethod
    def combine(self, values: Iterable[Any]) -> Iterable[Any] | None: ...


class JoinFunction(Function):
    @abc.abstractmethod
    def join(self, first: Any, second: Any) -> Any: ...


class FlatJoinFunction(Function):
    @abc.abstractmethod
    def join(self, first: Any, second: Any) -> Iterable[Any] | None: ...


class CoGroupFunction(Function):
    @abc.abstractmethod
    def co_group(self, first: Iterable[Any], second: Iterable[Any]) -> Iterable[Any] | None: ...


class CrossFunction(Function):
    @abc.abstractmethod
    def cross(self, first: Any, second: Any) -> Any: ...


def callable_of(function: Function | Callable[..., Any], method: str) -> Callable[..., Any]:
    """Return ``function.<method>`` for a Function object, or ``function`` itself when it is a plain callable.

    Raises: TypeError when it is neither, naming what was expected.
    """
    if isinstance(function, Function):
        bound: Callable[..., Any] | None = getattr(function, method, None)
        if bound is None:
            raise TypeError(f"{type(function).__name__} has no method {method}(); pass the matching Function class.")
        return bound
    if callable(function):
        return function
    raise TypeError(f"Expected a function or an object with {method}(), got {function!r}.")
