"""What the APIs build: a graph of typed, immutable-after-build nodes. DataStream, DataSet and SQL all lower to this.

Not to be confused with StreamGraph (defaults filled in) or JobGraph (chained vertices). There are no virtual nodes:
partitioning, union and side-output selection live on the edges.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from dataclasses import field
from typing import Any, Final

from engine.core.late_dataclass import dataclass
from engine.core.type_info import TypeInformation
from engine.operators.base import OperatorSpec

__all__ = [
    "DEFAULT_SLOT_SHARING_GROUP",
    "BufferTimeout",
    "ChainingStrategy",
    "Edge",
    "Partitioning",
    "ShipStrategy",
    "Transformation",
]

DEFAULT_SLOT_SHARING_GROUP: Final = "default"


class ShipStrategy(enum.Enum):
    """Which consumer subtask a record goes to. Values are the names that Flink's plans show."""

    FORWARD = "FORWARD"
    HASH = "HASH"
    REBALANCE = "REBALANCE"
    RESCALE = "RESCALE"
    SHUFFLE = "SHUFFLE"
    BROADCAST = "BROADCAST"
    GLOBAL = "GLOBAL"
    CUSTOM = "CUSTOM"
    RANGE = "RANGE"

    @property
    def is_pointwise(self) -> bool:
        """Each producer feeds only some consumers, so a failure of one does not concern all."""
        return self in (ShipStrategy.FORWARD, ShipStrategy.RESCALE)


@dataclass(frozen=True)
class Partitioning:
    """A ship strategy with what it needs. ``key_selector``: record → key (HASH, CUSTOM); a plain callable, a
    KeySelector, or an ``operators.keys.FieldKey`` which vectorised exchange understands.
    ``partitioner``: (key, num_partitions) → channel, a callable or a Partitioner (CUSTOM)."""

    strategy: ShipStrategy
    key_selector: Any = None
    partitioner: Callable[[Any, int], int] | Any = None
    #: FORWARD that nobody asked for: becomes REBALANCE when the parallelisms differ
    is_default: bool = False
    #: HASH: the kind of key that the program says it has, as in ``state/chunks.key_kinds_of``; "" = it does not say
    key_kind: str = ""


class ChainingStrategy(enum.Enum):
    ALWAYS = "ALWAYS"  #: chain to the predecessor if the edge allows
    HEAD = "HEAD"  #: begin a new chain; successors may be chained to it
    NEVER = "NEVER"


class BufferTimeout:
    """The knob between stream and batch, in milliseconds, as DataStream.set_buffer_timeout takes it."""

    #: Send only full buffers.
    FULL_BUFFERS: Final = -1
    #: Complete the whole partition (spilled to disk) before the consumer starts: a blocking exchange.
    INFINITE: Final = 2**63 - 1
    DEFAULT_MS: Final = 100


@dataclass(eq=False)
class Edge:
    """Records flow from ``source`` (its main output or side output ``side_tag``) to input ``input_index`` of the owner.

    Several edges with one ``input_index`` are a union.
    """

    source: Transformation
    partitioning: Partitioning
    input_index: int = 0
    side_tag: str | None = None


_ids = itertools.count(1)


@dataclass(eq=False)
class Transformation:
    """One operator as the program stated it. ``None`` means: take the environment's default."""

    name: str
    spec: OperatorSpec
    inputs: list[Edge] = field(default_factory=list)
    output_type: TypeInformation | None = None
    parallelism: int | None = None
    max_parallelism: int | None = None
    uid: str | None = None
    uid_hash: str | None = None
    description: str | None = None
    slot_sharing_group: str | None = None
    co_location_group: str | None = None
    chaining: ChainingStrategy = ChainingStrategy.ALWAYS
    #: of this node's outgoing edges; BufferTimeout's values
    buffer_timeout_ms: int | None = None
    #: parallelism can never be other than 1 (collection source, window_all, force_non_parallel)
    forced_non_parallel: bool = False
    is_bounded_source: bool = True  #: meaningful for sources only
    is_sink: bool = False
    #: "Source", "Sink" or "" — prefix of the vertex name as Flink shows it ("Source: x -> Map -> Sink: y")
    kind: str = ""
    #: what keeps its operator on rows, though its kind has a form on columns; "" = nothing, or that is not known
    why_rows: str = ""
    #: what it emits in rows becomes columns, as far as it is of this type; None = it stays rows
    columns_of: TypeInformation | None = None
    #: by input, what small batches of rows become columns of at its entrance (``operators/row_columns``)
    row_types: dict[int, TypeInformation] = field(default_factory=dict)
    id: int = field(default_factory=lambda: next(_ids))

    @property
    def tier(self) -> str:
        """What plans say of how the operator runs."""
        own = self.spec.describe()
        if self.columns_of is not None:
            own = f"{own}, results as columns" if own else "results as columns"
        if self.row_types:
            own = f"{own}, small batches come as rows"
        if not self.why_rows:
            return own
        told = own if own.endswith("on rows") else f"{own}, on rows" if own else "on rows"
        return f"{told}: {self.why_rows}"
