"""StateDescriptors name and type a state; StateTtlConfig says how long its values live. PyFlink's names; values only.

Nothing here holds state: see ``states`` (interfaces) and ``heap_backend``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, ClassVar, TypeVar

from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass
from engine.core.type_info import ListTypeInfo, MapTypeInfo, TypeInformation
from engine.time.watermarks import Duration, Time, span_ms

__all__ = [
    "AggregatingStateDescriptor",
    "ListStateDescriptor",
    "MapStateDescriptor",
    "ReducingStateDescriptor",
    "StateDescriptor",
    "StateTtlConfig",
    "ValueStateDescriptor",
]


class StateDescriptor:
    """``kind`` is what messages and snapshots call the sort of state."""

    kind: ClassVar[str] = ""

    def __init__(self, name: str, type_info: TypeInformation | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise ProgramError(f"{type(self).__name__}({name!r}): expected a name that is not empty.")
        self._check_type(type_info)
        self.name = name
        self.type_info = type_info
        self.ttl_config: StateTtlConfig | None = None

    @classmethod
    def _check_type(cls, *types: Any) -> None:
        for type_info in types:
            if type_info is not None and not isinstance(type_info, TypeInformation):
                raise ProgramError(
                    f"{cls.__name__}: expected a type such as Types.INT(), or none, got {type_info!r:.80}."
                )

    def get_name(self) -> str:
        return self.name

    def enable_time_to_live(self, ttl_config: StateTtlConfig) -> None:
        """Let values expire as ``ttl_config`` says."""
        if not isinstance(ttl_config, StateTtlConfig):
            raise ProgramError(
                f"enable_time_to_live({ttl_config!r}): expected a StateTtlConfig, "
                "e.g. StateTtlConfig.new_builder(Duration.of_hours(1)).build()."
            )
        self.ttl_config = ttl_config if ttl_config.is_enabled() else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class ValueStateDescriptor(StateDescriptor):
    kind = "value"

    def __init__(self, name: str, value_type_info: TypeInformation | None = None) -> None:
        super().__init__(name, value_type_info)


class ListStateDescriptor(StateDescriptor):
    kind = "list"

    def __init__(self, name: str, elem_type_info: TypeInformation | None = None) -> None:
        self._check_type(elem_type_info)
        super().__init__(name, None if elem_type_info is None else ListTypeInfo(elem_type_info))


class MapStateDescriptor(StateDescriptor):
    kind = "map"

    def __init__(
        self, name: str, key_type_info: TypeInformation | None = None, value_type_info: TypeInformation | None = None
    ) -> None:
        self._check_type(key_type_info, value_type_info)
        known = key_type_info is not None and value_type_info is not None
        super().__init__(name, MapTypeInfo(key_type_info, value_type_info) if known else None)  # type: ignore[arg-type]


class ReducingStateDescriptor(StateDescriptor):
    """``reduce_function``: a ReduceFunction or a callable of two values."""

    kind = "reducing"

    def __init__(self, name: str, reduce_function: Any, type_info: TypeInformation | None = None) -> None:
        super().__init__(name, type_info)
        if not callable(reduce_function) and not hasattr(reduce_function, "reduce"):
            raise ProgramError(
                f"ReducingStateDescriptor({name!r}): {reduce_function!r} is neither a function of two values "
                "nor a ReduceFunction."
            )
        self._reduce_function = reduce_function

    def get_reduce_function(self) -> Any:
        return self._reduce_function

    def reducer(self) -> Callable[[Any, Any], Any]:
        """Return (so far, next) → so far."""
        call: Callable[[Any, Any], Any] = getattr(self._reduce_function, "reduce", self._reduce_function)
        return call


class AggregatingStateDescriptor(StateDescriptor):
    """``agg_function``: an AggregateFunction. What is stored is its accumulator."""

    kind = "aggregating"

    def __init__(self, name: str, agg_function: Any, state_type_info: TypeInformation | None = None) -> None:
        super().__init__(name, state_type_info)
        missing = [m for m in ("create_accumulator", "add", "get_result", "merge") if not hasattr(agg_function, m)]
        if missing:
            raise ProgramError(
                f"AggregatingStateDescriptor({name!r}): {agg_function!r} has no {', '.join(missing)}; "
                "expected an AggregateFunction object."
            )
        self._agg_function = agg_function

    def get_agg_function(self) -> Any:
        return self._agg_function


class UpdateType(enum.Enum):
    """Which accesses prolong a value's life."""

    Disabled = 0
    OnCreateAndWrite = 1
    OnReadAndWrite = 2


class StateVisibility(enum.Enum):
    ReturnExpiredIfNotCleanedUp = 0
    NeverReturnExpired = 1


class TtlTimeCharacteristic(enum.Enum):
    ProcessingTime = 0


@dataclass(frozen=True)
class IncrementalCleanup:
    """``cleanup_size`` entries are looked at on each access to the state."""

    cleanup_size: int = 5
    run_cleanup_for_every_record: bool = False

    def get_cleanup_size(self) -> int:
        return self.cleanup_size

    def run_cleanup_for_every_record_enabled(self) -> bool:
        return self.run_cleanup_for_every_record


@dataclass(frozen=True)
class RocksdbCleanup:
    """Kept for who asks for it: state in RocksDB is cleaned when changes are written, as in memory."""

    query_time_after_num_entries: int = 1000
    periodic_compaction_time: Duration | None = None

    def get_query_time_after_num_entries(self) -> int:
        return self.query_time_after_num_entries

    def get_periodic_compaction_time(self) -> Duration:
        return self.periodic_compaction_time or Duration.of_days(30)


@dataclass(frozen=True)
class CleanupStrategies:
    is_cleanup_in_background: bool = True
    full_snapshot: bool = False
    incremental: IncrementalCleanup | None = None
    rocksdb: RocksdbCleanup | None = None

    IncrementalCleanupStrategy: ClassVar = IncrementalCleanup
    RocksdbCompactFilterCleanupStrategy: ClassVar = RocksdbCleanup

    def in_full_snapshot(self) -> bool:
        return self.full_snapshot

    def get_incremental_cleanup_strategy(self) -> IncrementalCleanup | None:
        """Return what was asked for; in the background a default one runs unless that was disabled."""
        if self.incremental is not None:
            return self.incremental
        return IncrementalCleanup() if self.is_cleanup_in_background else None

    def get_rocksdb_compact_filter_cleanup_strategy(self) -> RocksdbCleanup | None:
        """Return what was asked for; in the background the default one unless that was disabled."""
        if self.rocksdb is not None:
            return self.rocksdb
        return RocksdbCleanup() if self.is_cleanup_in_background else None

    def in_rocksdb_compact_filter(self) -> bool:
        return self.get_rocksdb_compact_filter_cleanup_strategy() is not None


@dataclass(frozen=True)
class StateTtlConfig:
    """Values expire ``ttl_ms`` after their last write (or read, by ``update_type``), by the wall clock."""

    ttl_ms: int
    update_type: UpdateType = UpdateType.OnCreateAndWrite
    state_visibility: StateVisibility = StateVisibility.NeverReturnExpired
    ttl_time_characteristic: TtlTimeCharacteristic = TtlTimeCharacteristic.ProcessingTime
    cleanup_strategies: CleanupStrategies = field(default_factory=CleanupStrategies)

    UpdateType: ClassVar = UpdateType
    StateVisibility: ClassVar = StateVisibility
    TtlTimeCharacteristic: ClassVar = TtlTimeCharacteristic
    CleanupStrategies: ClassVar = CleanupStrategies

    @staticmethod
    def new_builder(ttl: Duration | Time) -> StateTtlConfigBuilder:
        return StateTtlConfigBuilder(StateTtlConfig(_millis(ttl)))

    def get_update_type(self) -> Any:
        return self.update_type

    def get_state_visibility(self) -> Any:
        return self.state_visibility

    def get_ttl(self) -> Time:
        return Time(self.ttl_ms)

    def get_ttl_time_characteristic(self) -> Any:
        return self.ttl_time_characteristic

    def is_enabled(self) -> bool:
        return self.update_type is not UpdateType.Disabled

    def get_cleanup_strategies(self) -> Any:
        return self.cleanup_strategies


def _millis(ttl: Any) -> int:
    ttl_ms = span_ms(ttl, "Time to live")
    if ttl_ms <= 0:
        raise ProgramError(f"Time to live {ttl!r}: expected a Duration above zero, e.g. Duration.of_hours(1).")
    return ttl_ms


Kind = TypeVar("Kind", bound=enum.Enum)


def _member(kind: type[Kind], given: Any, method: str) -> Kind:
    if isinstance(given, kind):
        return given
    known = ", ".join(f"StateTtlConfig.{kind.__name__}.{member.name}" for member in kind)
    raise ProgramError(f"{method}({given!r:.80}): expected one of {known}.")


class StateTtlConfigBuilder:
    """``StateTtlConfig.new_builder(...)``; every method but ``build`` returns the builder."""

    def __init__(self, config: StateTtlConfig) -> None:
        self._config = config

    def _with(self, **changes: Any) -> StateTtlConfigBuilder:
        self._config = replace(self._config, **changes)
        return self

    def _with_cleanup(self, **changes: Any) -> StateTtlConfigBuilder:
        return self._with(cleanup_strategies=replace(self._config.cleanup_strategies, **changes))

    def set_update_type(self, update_type: UpdateType) -> StateTtlConfigBuilder:
        return self._with(update_type=_member(UpdateType, update_type, "set_update_type"))

    def update_ttl_on_create_and_write(self) -> StateTtlConfigBuilder:
        return self._with(update_type=UpdateType.OnCreateAndWrite)

    def update_ttl_on_read_and_write(self) -> StateTtlConfigBuilder:
        return self._with(update_type=UpdateType.OnReadAndWrite)

    def set_state_visibility(self, state_visibility: StateVisibility) -> StateTtlConfigBuilder:
        return self._with(state_visibility=_member(StateVisibility, state_visibility, "set_state_visibility"))

    def return_expired_if_not_cleaned_up(self) -> StateTtlConfigBuilder:
        return self._with(state_visibility=StateVisibility.ReturnExpiredIfNotCleanedUp)

    def never_return_expired(self) -> StateTtlConfigBuilder:
        return self._with(state_visibility=StateVisibility.NeverReturnExpired)

    def set_ttl_time_characteristic(self, ttl_time_characteristic: TtlTimeCharacteristic) -> StateTtlConfigBuilder:
        time = _member(TtlTimeCharacteristic, ttl_time_characteristic, "set_ttl_time_characteristic")
        return self._with(ttl_time_characteristic=time)

    def use_processing_time(self) -> StateTtlConfigBuilder:
        return self._with(ttl_time_characteristic=TtlTimeCharacteristic.ProcessingTime)

    def cleanup_full_snapshot(self) -> StateTtlConfigBuilder:
        """Leave expired values out of snapshots."""
        return self._with_cleanup(full_snapshot=True)

    def cleanup_incrementally(
        self, cleanup_size: int, run_cleanup_for_every_record: bool = False
    ) -> StateTtlConfigBuilder:
        """Look at ``cleanup_size`` entries on each access and remove those that have expired."""
        if not isinstance(cleanup_size, int) or cleanup_size < 1:
            raise ProgramError(f"cleanup_incrementally({cleanup_size!r:.80}): expected at least 1 entry.")
        return self._with_cleanup(incremental=IncrementalCleanup(cleanup_size, run_cleanup_for_every_record))

    def cleanup_in_rocksdb_compact_filter(
        self, query_time_after_num_entries: int = 1000, periodic_compaction_time: Duration | None = None
    ) -> StateTtlConfigBuilder:
        """Remembered; what has expired is removed when changes are written."""
        strategy = RocksdbCleanup(query_time_after_num_entries, periodic_compaction_time)
        return self._with_cleanup(rocksdb=strategy)

    def disable_cleanup_in_background(self) -> StateTtlConfigBuilder:
        return self._with_cleanup(is_cleanup_in_background=False)

    def set_ttl(self, ttl: Duration | Time) -> StateTtlConfigBuilder:
        return self._with(ttl_ms=_millis(ttl))

    def build(self) -> StateTtlConfig:
        return self._config
