"""JobGraph: chained vertices and the edges between them, ready to submit. Data only; made by ``graph/stream_graph``
and ``graph/chaining``.

A vertex's code is one opaque ``chain`` blob, so the JobManager never loads user code; coordinator specs are separate
blobs of engine classes.
"""

from __future__ import annotations

import enum
import re
from dataclasses import field
from typing import Any, Final

from engine.core.ids import IntermediateDatasetID, JobID, JobVertexID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.core.type_info import TypeInformation
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.base import OperatorSpec
from engine.protocol.control import UserFile

__all__ = [
    "ChainSpec",
    "ChainedOperator",
    "Exit",
    "JobEdge",
    "JobGraph",
    "JobType",
    "JobVertex",
    "OperatorInfo",
]


class JobType(enum.Enum):
    STREAMING = "STREAMING"
    BATCH = "BATCH"


# --- inside the blob of a vertex (loaded in the slot process only) --------------------------------------------------


@dataclass(frozen=True)
class ChainedOperator:
    """One operator of a chain. Operators are listed head first; ``next`` are indexes of chained successors together
    with the side tag that they listen to (None = main output) and the successor's input index. ``columns_of``: what it
    emits in rows becomes columns, as far as it is of this type."""

    operator_id: OperatorID
    name: str
    spec: OperatorSpec
    next: tuple[tuple[int, str | None, int], ...] = ()
    columns_of: TypeInformation | None = None


@dataclass(frozen=True)
class Exit:
    """An outgoing edge: records of operator ``operator_index`` leave through result partition number = position."""

    operator_index: int
    side_tag: str | None
    partitioning: Partitioning
    #: who reads it makes columns of rows (``ChainSpec.row_types``), which is better for small batches
    small_as_rows: bool = False


@dataclass(frozen=True)
class ChainSpec:
    operators: tuple[ChainedOperator, ...]
    exits: tuple[Exit, ...]
    #: by logical input of the head, what records are keyed by on their way here (HASH edges only)
    input_keys: dict[int, Any] = field(default_factory=dict)
    #: (logical input of the head, type): rows that come there become columns, as far as they are of that type
    row_types: tuple[tuple[int, TypeInformation], ...] = ()


# --- what the JobManager sees ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobEdge:
    """Outgoing edge number ``exit_index`` of the source vertex → one input gate of the target."""

    dataset_id: IntermediateDatasetID
    source_id: JobVertexID
    target_id: JobVertexID
    exit_index: int
    input_index: int
    ship_strategy: ShipStrategy
    blocking: bool
    buffer_timeout_ms: int
    #: the edge closes a loop of an iteration: ignored for ordering
    is_feedback: bool = False


#: How a pickle has a class of the engine: its module's name after its length, the class's name alike, "get it".
_CLASS: Final = re.compile(rb"\x8c(.)(engine(?:\.[a-z0-9_]+)+)\x94\x8c.[\w.]+\x94\x93", re.DOTALL)

#: Where a columnar job's classes are all from here, its slots get on without pandas, which is long to load (a test sees
#: that they do). Of others that is not known; it is loaded once for all slots.
_WITHOUT_PANDAS: Final = frozenset(
    f"engine.{name}"
    for name in (
        "connectors.collect",
        "connectors.column_generator",
        "connectors.simple",
        "connectors.source",
        "connectors.stamped_source",
        "core.ids",
        "core.type_info",
        "core.user_code",
        "graph.job_graph",
        "graph.transformation",
        "operators.bound_function",
        "operators.column_aggregate",
        "operators.column_window",
        "operators.field_aggregates",
        "operators.keys",
        "operators.process_functions",
        "operators.record_choice",
        "operators.window",
        "operators.window_contents",
        "operators.window_functions",
        "time.triggers",
        "time.watermarks",
    )
)
_CONVERSIONS: Final = "engine.operators.warm_up.conversions"


@dataclass(frozen=True)
class OperatorInfo:
    """What plans and REST show of an operator."""

    operator_id: OperatorID
    name: str
    uid: str | None
    description: str
    #: e.g. "vectorised", "interpreted"; "" when not told
    tier: str = ""
    #: modules that a process which forks slots had better import before
    preload: tuple[str, ...] = ()
    #: kind of the keys of its keyed input, if the program says it
    key_kind: str = ""


@dataclass(frozen=True)
class JobVertex:
    vertex_id: JobVertexID
    name: str  #: "Source: lines -> flat_map -> key_by"
    parallelism: int
    max_parallelism: int
    chain: bytes
    operators: tuple[OperatorInfo, ...]
    slot_sharing_group: str
    co_location_group: str | None
    #: operator id → pickle of its CoordinatorSpec
    coordinators: dict[OperatorID, bytes] = field(default_factory=dict)
    is_source: bool = False
    is_bounded: bool = True
    is_parallel: bool = True  #: may have another parallelism than 1
    follows_default: bool = True  #: no operator of the chain had a parallelism of its own


@dataclass(frozen=True)
class JobGraph:
    job_id: JobID
    name: str
    job_type: JobType
    #: in topological order, sources first
    vertices: tuple[JobVertex, ...]
    edges: tuple[JobEdge, ...]
    #: the job's own configuration, laid over the cluster's
    config: dict[str, str] = field(default_factory=dict)
    files: tuple[UserFile, ...] = ()
    #: Flink's JSON plan, for REST and ``flink info``
    plan: dict[str, Any] = field(default_factory=dict)
    #: global job parameters (ParameterTool), shown by REST and given to RuntimeContext
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules of the engine that its operators' tasks need: those of their classes, and then what takes long."""
        of_classes = {
            name.decode()
            for vertex in self.vertices
            for length, name in _CLASS.findall(vertex.chain)
            if ord(length) == len(name)
        }
        named = {name for vertex in self.vertices for info in vertex.operators for name in info.preload}
        if named and not of_classes <= _WITHOUT_PANDAS:
            named.add(_CONVERSIONS)
        return (*sorted(of_classes - named), *sorted(named))

    def vertex(self, vertex_id: JobVertexID) -> JobVertex:
        return next(vertex for vertex in self.vertices if vertex.vertex_id == vertex_id)
