"""Messages that ask a slot what its code is doing, and its answer. JobManager → TaskManager → slot and back."""

from __future__ import annotations

from dataclasses import field

from engine.core.ids import AllocationID, ExecutionAttemptID
from engine.core.late_dataclass import dataclass

__all__ = ["OperatorMetrics", "SampleStacks", "Stack", "StacksSampled"]

#: Frames from the outermost to the innermost, as "module.function:line".
Stack = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SampleStacks:
    """Look ``num_samples`` times, every ``interval_ms``."""

    request_id: int
    allocation_id: AllocationID
    num_samples: int
    interval_ms: int


@dataclass(frozen=True, slots=True)
class StacksSampled:
    """``samples``: by subtask, how often each stack was seen; () = none of its code was running: idle, backpressured,
    or another subtask of the slot had its turn."""

    request_id: int
    samples: dict[ExecutionAttemptID, dict[Stack, int]] = field(default_factory=dict)
    end_ms: int = 0  #: wall clock
    error: str = ""


@dataclass(frozen=True, slots=True)
class OperatorMetrics:
    """What one operator of a running chain did since its start."""

    name: str
    records_out: int
    batches_out: int
    busy_ms: int  #: in its own code and functions, without operators behind it
    #: e.g. "vectorised", "compiled", "interpreted (why)"
    tier: str = ""
    #: name of the operator in whose loop it runs; its busy time is counted there
    fused_with: str = ""
