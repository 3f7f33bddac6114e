"""What operators on keyed streams share: the key of each record, keyed state, and state of one namespace for users."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.config import Configuration
from engine.core.errors import ProgramError
from engine.core.options import CheckpointingOptions
from engine.operators.base import OperatorContext
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error
from engine.operators.functions import KeyedStateStore
from engine.operators.keys import FieldKey, key_error, key_function
from engine.state.backend import KeyedStateBackend
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    ValueStateDescriptor,
)
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.key_groups import stable_hash
from engine.state.mapping_part import MappingPart
from engine.state.states import AggregatingState, ListState, MapState, ReducingState, ValueState
from engine.state.timers import Timers, TimerService

if TYPE_CHECKING:
    from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
    from engine.state.rocksdb_timers import RocksTimers

__all__ = [
    "KEYED_PART",
    "TIMERS_PART",
    "Keys",
    "NamespaceStateStore",
    "is_incremental",
    "is_on_disk",
    "last_row",
    "open_keyed_state",
    "open_mapping",
    "open_timers",
    "owner_of",
    "see_keys",
]


#: Their hash is known to be stable.
_PLAIN_KEYS: Final = frozenset((str, int, float, bool, bytes, type(None)))
#: Batches of which all keys are looked at; of later ones the first.
_LOOKS_MAX: Final = 16
#: Names of parts of state in checkpoints, for good.
KEYED_PART: Final = "keyed"
TIMERS_PART: Final = "timers"


def open_keyed_state(ctx: OperatorContext) -> KeyedStateBackend:
    """Return the keyed state of an operator, restored, in the backend that ``state.backend.type`` names; from now on
    its RuntimeContext gives it out to the user's function. Whoever opens it closes it."""
    backend = _open_rocksdb(ctx) if is_on_disk(ctx) else _open_heap(ctx)
    try:
        ctx.state.add_keyed(KEYED_PART, backend)
    except BaseException:
        backend.close()
        raise
    ctx.runtime_context._keyed_state = backend
    return backend


def _open_heap(ctx: OperatorContext) -> HeapKeyedStateBackend:
    return HeapKeyedStateBackend(
        ctx.clock,
        ctx.runtime_context.get_max_number_of_parallel_subtasks(),
        owner=owner_of(ctx),
        incremental=is_incremental(ctx),
        key_types=ctx.state.key_types(),
        is_own=not ctx.state.told_as,
    )


def _open_rocksdb(ctx: OperatorContext) -> RocksDBKeyedStateBackend:
    from engine.state.rocksdb_backend import RocksDBKeyedStateBackend

    runtime_context = ctx.runtime_context
    # Unique among all subtasks, attempts and jobs that may ever share a folder of checkpoints.
    whose = (
        ctx.job_id,
        ctx.operator_id,
        runtime_context.get_index_of_this_subtask(),
        runtime_context.get_attempt_number(),
    )
    session = hashlib.blake2b(repr(whose).encode(), digest_size=8).hexdigest()
    root = Configuration(ctx.config).get(CheckpointingOptions.ROCKSDB_LOCAL_DIR) or ctx.work_dir
    return RocksDBKeyedStateBackend(
        ctx.clock,
        runtime_context.get_max_number_of_parallel_subtasks(),
        folder=os.path.join(root, f"rocksdb-{session}"),
        memory_bytes=ctx.memory_bytes,
        session=session,
        owner=owner_of(ctx),
        key_types=ctx.state.key_types(),
        is_own=not ctx.state.told_as,
    )


def open_timers(ctx: OperatorContext) -> Timers:
    """Return the timers of an operator, restored. They are in the RocksDB of its keyed state, if that is opened before,
    unless ``state.backend.rocksdb.timer-service.factory`` says otherwise."""
    on_disk = _open_timers_on_disk(ctx) if is_on_disk(ctx) else None
    if on_disk is not None and Configuration(ctx.config).get(CheckpointingOptions.ROCKSDB_TIMERS) == "ROCKSDB":
        ctx.state.add_keyed(TIMERS_PART, on_disk)
        return on_disk
    timers = TimerService(
        ctx.runtime_context.get_max_number_of_parallel_subtasks(),
        owner=owner_of(ctx),
        incremental=is_incremental(ctx),
    )
    ctx.state.add_keyed(TIMERS_PART, timers)
    if on_disk is not None:
        on_disk.move_to(timers)
    return timers


def _open_timers_on_disk(ctx: OperatorContext) -> RocksTimers | None:
    from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
    from engine.state.rocksdb_timers import RocksTimers

    host = ctx.state.keyed.get(KEYED_PART)
    return RocksTimers(host, owner=owner_of(ctx)) if isinstance(host, RocksDBKeyedStateBackend) else None


def open_mapping(
    ctx: OperatorContext,
    state_name: str,
    *,
    items: Callable[[], Iterable[tuple[Any, Any]]],
    get: Callable[[Any], Any],
    put: Callable[[Any, Any], None],
    size: Callable[[], int],
    incremental: bool = True,
) -> MappingPart:
    """Register a table of the operator's own as its keyed state; ``put`` is called at once with what is restored.
    ``incremental``: the operator says which keys change (``see_keys``), and none ever goes."""
    part = MappingPart(
        state_name,
        ctx.runtime_context.get_max_number_of_parallel_subtasks(),
        items=items,
        get=get,
        put=put,
        size=size,
        owner=owner_of(ctx),
        incremental=incremental and is_incremental(ctx),
        key_types=ctx.state.key_types(),
    )
    ctx.state.add_keyed(KEYED_PART, part)
    return part


def see_keys(part: MappingPart, keys: Keys, of_rows: list[Any], rows: list[Any]) -> None:
    """Tell a mapping the keys of a batch. Raises UserCodeError when one cannot be a key."""
    try:
        part.see(of_rows)
    except TypeError:
        for key, row in zip(of_rows, rows, strict=True):
            keys.check(key, row)
        raise


def owner_of(ctx: OperatorContext) -> str:
    """Return how messages about an operator's state name it."""
    return ctx.state.told_as or f"Operator {ctx.operator_name!r}"


def is_on_disk(ctx: OperatorContext) -> bool:
    """Return whether keyed state is to lie on the disk: ``state.backend.type: rocksdb``."""
    return Configuration(ctx.config).get(CheckpointingOptions.BACKEND) == "rocksdb"


def is_incremental(ctx: OperatorContext) -> bool:
    return Configuration(ctx.config).get(CheckpointingOptions.INCREMENTAL)


def last_row(rows: list[Any], remaining: Iterator[Any]) -> Any:
    """Return the row that ``remaining = iter(rows)`` gave last."""
    return rows[len(rows) - operator.length_hint(remaining) - 1]


@final
class Keys:
    """A key selector inside an operator: opened, closed, and its failures told from those of the function."""

    def __init__(self, selector: Any) -> None:
        self._selector = selector
        self._function: BoundFunction | None = None
        if callable(selector) and isinstance(selector, FieldKey):
            self._call = key_function(selector)
        else:
            self._function = BoundFunction(selector, "get_key")
            self._call = key_function(selector)
        self._operator_name = ""
        self._looks_left = _LOOKS_MAX

    def open(self, ctx: OperatorContext) -> None:
        self._operator_name = ctx.operator_name
        if self._function is not None:
            self._function.open(ctx)

    def close(self) -> None:
        if self._function is not None:
            self._function.close()

    def of(self, rows: list[Any]) -> list[Any]:
        call = self._call
        remaining = iter(rows)
        try:
            keys = [call(row) for row in remaining]
        except BaseException as error:
            row = last_row(rows, remaining)
            seen = key_error(error, self._selector, row)
            raise user_error(seen, operator_name=self._operator_name, record=row) from seen
        if self._looks_left:
            self._looks_left -= 1
            if not _PLAIN_KEYS.issuperset(map(type, keys)):
                self._look(keys, rows)
        elif keys and type(keys[0]) not in _PLAIN_KEYS:
            self._look(keys[:1], rows)
        return keys

    def _look(self, keys: list[Any], rows: list[Any]) -> None:
        """Look at the first key of each type. Where there is an exchange it has hashed them all; where there is none a
        key that is another one in each process would be taken, and its state never be found again.

        Raises: UserCodeError.
        """
        seen = set(_PLAIN_KEYS)
        for key, row in zip(keys, rows, strict=False):
            if type(key) in seen:
                continue
            seen.add(type(key))
            try:
                stable_hash(key)
            except ProgramError as error:
                self.check(key, row)
                raise user_error(error, operator_name=self._operator_name, record=row) from error

    def check(self, key: Any, row: Any) -> None:
        """Raise UserCodeError when the key cannot be looked up (a list, a dict…)."""
        try:
            hash(key)
        except TypeError as error:
            seen = TypeError(
                f"{key!r:.80} of type {type(key).__name__} cannot be a key: it is not hashable. "
                "Return a str, number, bytes or a tuple of these from the key selector."
            )
            raise user_error(seen, operator_name=self._operator_name, record=row) from error


@final
class NamespaceStateStore(KeyedStateStore):
    """Keyed state in one namespace, e.g. of a window: what ``window_state()`` returns."""

    def __init__(self, backend: KeyedStateBackend, namespace: Any) -> None:
        self._backend = backend
        self.namespace = namespace

    def _here(self, state: Any) -> Any:
        state.set_current_namespace(self.namespace)
        return state

    def get_state(self, state_descriptor: ValueStateDescriptor) -> ValueState:
        state: ValueState = self._here(self._backend.value_state(state_descriptor))
        return state

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> ListState:
        state: ListState = self._here(self._backend.list_state(state_descriptor))
        return state

    def get_map_state(self, state_descriptor: MapStateDescriptor) -> MapState:
        state: MapState = self._here(self._backend.map_state(state_descriptor))
        return state

    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> ReducingState:
        state: ReducingState = self._here(self._backend.reducing_state(state_descriptor))
        return state

    def get_aggregating_state(self, state_descriptor: AggregatingStateDescriptor) -> AggregatingState:
        state: AggregatingState = self._here(self._backend.aggregating_state(state_descriptor))
        return state
