"""What PyFlink programs import from ``pyflink.common``: façade only, the pieces live in lower layers."""

from typing import TYPE_CHECKING, Any

from engine.client.job_client import CompletableFuture, JobClient, JobExecutionResult
from engine.common.execution_config import ExecutionConfig
from engine.common.parameter_tool import ParameterTool
from engine.common.restart_strategy import RestartStrategies
from engine.core.config import Configuration
from engine.core.ids import JobID
from engine.core.records import Row, RowKind
from engine.core.type_info import TypeInformation, Types
from engine.protocol.lifecycle import JobStatus
from engine.time.watermarks import Duration, IngestionTimeAssigner, Instant, Time, TimestampAssigner, WatermarkStrategy

if TYPE_CHECKING:
    from engine.connectors.part_writers import Encoder

__all__ = [
    "CompletableFuture",
    "Configuration",
    "Duration",
    "Encoder",
    "ExecutionConfig",
    "IngestionTimeAssigner",
    "Instant",
    "JobClient",
    "JobExecutionResult",
    "JobID",
    "JobStatus",
    "ParameterTool",
    "RestartStrategies",
    "Row",
    "RowKind",
    "Time",
    "TimestampAssigner",
    "TypeInformation",
    "Types",
    "WatermarkStrategy",
]


def __getattr__(name: str) -> Any:
    """Load what brings file formats along only when it is asked for."""
    if name == "Encoder":
        from engine.connectors.part_writers import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
