"""StreamExecutionEnvironment: where a DataStream program begins and is executed. PyFlink's names and signatures.

The environment knows where to run from its configuration: nothing set = in this process; set by ``flink run`` through
the client context; or ``execution.target`` given in the program.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from engine.client.context import next_job_id
from engine.client.executors import execute_async
from engine.client.job_client import JobClient, JobExecutionResult
from engine.client.user_files import collect_user_files
from engine.common.environment import Environment
from engine.connectors.simple import CollectionSpec, FunctionSourceSpec, SequenceSource, SocketTextSpec
from engine.connectors.source import Boundedness, Source, SourceSpec
from engine.connectors.stamped_source import StampedSourceSpec
from engine.core.config import Configuration
from engine.core.errors import ConfigError, EngineError, ProgramError
from engine.core.options import CheckpointingOptions, JobOptions
from engine.core.type_info import TypeInformation, Types
from engine.core.user_code import told_briefly
from engine.datastream.checkpoint_config import CheckpointConfig
from engine.datastream.checkpointing_mode import CheckpointingMode
from engine.datastream.execution_mode import RuntimeExecutionMode
from engine.datastream.lowering import is_bounded, lower
from engine.datastream.row_types import rows_of_type, source_of_type
from engine.datastream.state_backend import StateBackend, state_backend_of
from engine.graph.job_graph import JobGraph
from engine.graph.plan import execution_plan_json
from engine.graph.stream_graph import build_job_graph
from engine.graph.transformation import BufferTimeout, Transformation
from engine.operators.functions import SourceFunction
from engine.state.key_groups import MAX_PARALLELISM_MAX
from engine.time.watermarks import WatermarkStrategy

if TYPE_CHECKING:
    from engine.datastream.data_stream import DataStream
    from engine.datastream.slot_sharing_group import SlotSharingGroup

__all__ = ["StreamExecutionEnvironment"]

DEFAULT_JOB_NAME = "Flink Streaming Job"


class StreamExecutionEnvironment(Environment):
    """Holds the sources and sinks of one program, and its configuration."""

    def __init__(self, configuration: Configuration | None = None) -> None:
        super().__init__(configuration)
        self._sinks: list[Transformation] = []

    # --- settings ------------------------------------------------------------------------------------------------

    def set_max_parallelism(self, max_parallelism: int) -> StreamExecutionEnvironment:
        if not isinstance(max_parallelism, int) or not 0 < max_parallelism <= MAX_PARALLELISM_MAX:
            raise ConfigError(f"set_max_parallelism({max_parallelism!r}): expected 1 to {MAX_PARALLELISM_MAX}.")
        self._config.set(JobOptions.MAX_PARALLELISM, max_parallelism)
        return self

    def get_max_parallelism(self) -> int:
        return self._config.get(JobOptions.MAX_PARALLELISM)

    def set_runtime_mode(self, execution_mode: RuntimeExecutionMode) -> StreamExecutionEnvironment:
        self._config.set(JobOptions.RUNTIME_MODE, execution_mode.name)
        return self

    def enable_checkpointing(
        self, interval: int | None = None, mode: CheckpointingMode | None = None
    ) -> StreamExecutionEnvironment:
        """Take a checkpoint every ``interval`` milliseconds (500 if none is given); after a failure the job goes on
        from the last one."""
        self.get_checkpoint_config().set_checkpoint_interval(500 if interval is None else interval)
        if mode is not None:
            self.get_checkpoint_config().set_checkpointing_mode(mode)
        return self

    def get_checkpoint_config(self) -> CheckpointConfig:
        return CheckpointConfig(self._config)

    def get_checkpoint_interval(self) -> int:
        return self.get_checkpoint_config().get_checkpoint_interval()

    def get_checkpointing_mode(self) -> CheckpointingMode:
        return self.get_checkpoint_config().get_checkpointing_mode()

    def get_checkpointing_consistency_mode(self) -> CheckpointingMode:
        return self.get_checkpointing_mode()

    def is_unaligned_checkpoints_enabled(self) -> bool:
        return self.get_checkpoint_config().is_unaligned_checkpoints_enabled()

    def is_force_unaligned_checkpoints(self) -> bool:
        return self.get_checkpoint_config().is_force_unaligned_checkpoints()

    def set_state_backend(self, state_backend: StateBackend) -> StreamExecutionEnvironment:
        """Say where keyed state lives: ``HashMapStateBackend()`` or ``EmbeddedRocksDBStateBackend()``."""
        if not isinstance(state_backend, StateBackend):
            raise ConfigError(
                f"set_state_backend({state_backend!r:.80}): expected HashMapStateBackend() or "
                "EmbeddedRocksDBStateBackend(); state.backend.type takes their names."
            )
        state_backend.write_to(self._config)
        return self

    def get_state_backend(self) -> StateBackend:
        return state_backend_of(self._config)

    def enable_changelog_state_backend(self, enabled: bool) -> StreamExecutionEnvironment:
        """Kept for compatibility; it has no effect. Increments: ``execution.checkpointing.incremental``."""
        self._config.set("state.changelog.enabled", enabled)
        return self

    def is_changelog_state_backend_enabled(self) -> bool | None:
        return self._config.get_boolean("state.changelog.enabled", False)

    def set_default_savepoint_directory(self, directory: str) -> StreamExecutionEnvironment:
        """Set the folder of savepoints for which none is given."""
        self._config.set(CheckpointingOptions.SAVEPOINT_DIR, directory)
        return self

    def get_default_savepoint_directory(self) -> str | None:
        return self._config.get(CheckpointingOptions.SAVEPOINT_DIR) or None

    def set_buffer_timeout(self, timeout_millis: int) -> StreamExecutionEnvironment:
        """Set how long a record may wait in an output buffer: 0 = sent at once, -1 = only full buffers,
        ``BufferTimeout.INFINITE`` = the consumer starts when the whole partition is complete (batch exchange)."""
        _check_buffer_timeout(timeout_millis)
        self._config.set(JobOptions.BUFFER_TIMEOUT, timeout_millis)
        return self

    def get_buffer_timeout(self) -> int:
        if not self._config.get(JobOptions.BUFFER_TIMEOUT_ENABLED):
            return BufferTimeout.FULL_BUFFERS
        return self._config.get(JobOptions.BUFFER_TIMEOUT)

    def disable_operator_chaining(self) -> StreamExecutionEnvironment:
        self._config.set(JobOptions.CHAINING, False)
        return self

    def is_chaining_enabled(self) -> bool:
        return self._config.get(JobOptions.CHAINING)

    def register_slot_sharing_group(self, slot_sharing_group: SlotSharingGroup) -> StreamExecutionEnvironment:
        """Accepted for compatibility: slots of this release have equal resources, so only the name counts."""
        return self

    def add_jars(self, *jars_path: str) -> None:
        raise ProgramError("add_jars: this engine runs no Java; connectors are Python packages. Remove the call.")

    def add_classpaths(self, *classpaths: str) -> None:
        raise ProgramError("add_classpaths: this engine runs no Java. Use add_python_file for Python code.")

    # --- sources -------------------------------------------------------------------------------------------------

    def from_collection(self, collection: Iterable[Any], type_info: TypeInformation | None = None) -> DataStream:
        """Make a stream of the elements, in order; the source's parallelism is 1."""
        if not isinstance(collection, Iterable):
            raise ProgramError(
                f"from_collection({collection!r:.80}): expected a list or another iterable; for single values there is "
                "from_elements."
            )
        rows = rows_of_type(collection, type_info)
        return self._source(
            "Collection Source", CollectionSpec(tuple(rows)), type_info, forced_non_parallel=True, parallelism=1
        )

    def from_elements(self, *elements: Any, type_info: TypeInformation | None = None) -> DataStream:
        return self.from_collection(elements, type_info)

    def from_sequence(self, start: int, end: int) -> DataStream:
        """Make the numbers ``start`` to ``end``, both included, in parallel; order holds within a subtask."""
        return self._source("Sequence Source", SourceSpec(SequenceSource(start, end)), Types.LONG())

    def read_text_file(self, file_path: str, charset_name: str = "UTF-8") -> DataStream:
        """Make a stream of the lines of a file, folder or glob, local or ``hdfs://``; large files in parallel."""
        from engine.connectors.files import TextFileSource

        return self._source(
            "Text File Source", SourceSpec(TextFileSource((file_path,), charset_name.lower())), Types.STRING()
        )

    def socket_text_stream(self, hostname: str, port: int, delimiter: str = "\n", max_retry: int = 0) -> DataStream:
        """Make a stream of the lines that a server sends; reconnects up to ``max_retry`` times (-1: for ever)."""
        spec = SocketTextSpec(hostname, port, delimiter, max_retry)
        return self._source(
            "Socket Stream", spec, Types.STRING(), forced_non_parallel=True, parallelism=1, bounded=False
        )

    def from_source(
        self,
        source: Any,
        watermark_strategy: WatermarkStrategy,
        source_name: str,
        type_info: TypeInformation | None = None,
    ) -> DataStream:
        """Make a stream of a FileSource, NumberSequenceSource, DataGeneratorSource or a ``Source`` of your own. Each
        of its splits has a watermark of its own; the stream's is the lowest of those that are being read."""
        source = source_of_type(source, type_info)
        to_spec = getattr(source, "to_spec", None)
        if to_spec is not None:
            spec, bounded = to_spec(), getattr(source, "boundedness", Boundedness.BOUNDED) is Boundedness.BOUNDED
        elif isinstance(source, Source):
            spec, bounded = SourceSpec(source), source.boundedness is Boundedness.BOUNDED
        else:
            raise ProgramError(f"from_source: {source!r} is not a source; expected FileSource.…build() or the like.")
        if not isinstance(watermark_strategy, WatermarkStrategy):
            raise ProgramError(
                f"from_source: {watermark_strategy!r:.80} is no WatermarkStrategy; expected WatermarkStrategy."
                "no_watermarks(), for_bounded_out_of_orderness(…) or the like."
            )
        if watermark_strategy != WatermarkStrategy.no_watermarks():
            spec = StampedSourceSpec(spec, watermark_strategy)
        produced = type_info or getattr(source, "produced_type", None) or getattr(source, "type_info", None)
        parallelism = getattr(source, "parallelism", None)
        return self._source(source_name, spec, produced, bounded=bounded, parallelism=parallelism)

    def add_source(
        self, source_func: SourceFunction, source_name: str = "Custom Source", type_info: TypeInformation | None = None
    ) -> DataStream:
        """Make a stream of a ``SourceFunction`` written in Python; parallelism 1. Treated as unbounded."""
        if not isinstance(source_func, SourceFunction):
            raise ProgramError(f"add_source: {source_func!r} is not a SourceFunction.")
        return self._source(
            source_name,
            FunctionSourceSpec(source_func),
            type_info,
            forced_non_parallel=True,
            parallelism=1,
            bounded=False,
        )

    def _source(
        self,
        name: str,
        spec: Any,
        type_info: TypeInformation | None,
        *,
        bounded: bool = True,
        forced_non_parallel: bool = False,
        parallelism: int | None = None,
    ) -> DataStream:
        from engine.datastream.data_stream import DataStream

        node = Transformation(
            name=name,
            spec=spec,
            output_type=type_info,
            kind="Source",
            is_bounded_source=bounded,
            forced_non_parallel=forced_non_parallel,
            parallelism=parallelism,
        )
        return DataStream(self, node)

    # --- execution -----------------------------------------------------------------------------------------------

    def _add_sink(self, node: Transformation) -> None:
        self._sinks.append(node)

    def _build(self, job_name: str | None) -> tuple[JobGraph, dict[str, str]]:
        if not self._sinks:
            raise ProgramError(
                "No operators defined in streaming topology. Cannot execute: "
                "add a sink (print, sink_to, write_as_text, …) or use execute_and_collect."
            )
        mode = self._config.get(JobOptions.RUNTIME_MODE)
        batch = mode == "BATCH" or (mode == "AUTOMATIC" and is_bounded(self._sinks))
        ends = lower(self._sinks, batch=batch)
        files, paths = collect_user_files(self._config, self._cached_files)
        job_graph = build_job_graph(
            ends,
            job_id=next_job_id(self._config),
            job_name=job_name or self._config.get(JobOptions.NAME) or DEFAULT_JOB_NAME,
            config=self._config,
            files=tuple(files),
            parameters=self.get_config().get_global_job_parameters(),
            batch=batch,
        )
        return job_graph, paths

    def execute(self, job_name: str | None = None) -> JobExecutionResult:
        """Run the program and wait for its end; detached (``flink run -d``), only for its acceptance.

        Raises: ProgramError if it cannot become a job, JobExecutionError with the root cause if it fails.
        """
        try:
            client = self.execute_async(job_name)
            if self._config.get_string(JobOptions.ATTACHED.key) == "false":
                # Somebody said detached (flink run -d, REST): the program ends, the job goes on.
                return JobExecutionResult(client.get_job_id(), -1, {})
            return _result_of(client)
        except EngineError as error:
            raise told_briefly(error) from error.__cause__

    def execute_async(self, job_name: str | None = None) -> JobClient:
        """Start the program and return at once with a handle on the job."""
        try:
            job_graph, paths = self._build(job_name)
            self._sinks.clear()
            return execute_async(job_graph, paths, self._config)
        except EngineError as error:
            raise told_briefly(error) from error.__cause__

    def get_execution_plan(self) -> str:
        """Return the program's plan as JSON, without running it."""
        mode = self._config.get(JobOptions.RUNTIME_MODE)
        batch = mode == "BATCH" or (mode == "AUTOMATIC" and is_bounded(self._sinks))
        return execution_plan_json(lower(self._sinks, batch=batch), self._config)

    def close(self) -> None:
        """Kept for compatibility: there is nothing to close."""


def _result_of(client: JobClient) -> JobExecutionResult:
    try:
        return client.get_job_execution_result().result()
    except KeyboardInterrupt:
        client.on_interrupt()
        raise


def _check_buffer_timeout(timeout_millis: int) -> None:
    if not isinstance(timeout_millis, int) or timeout_millis < -1:
        raise ConfigError(
            f"set_buffer_timeout({timeout_millis!r}): expected -1 (full buffers), 0 (at once), milliseconds, "
            "or BufferTimeout.INFINITE."
        )
