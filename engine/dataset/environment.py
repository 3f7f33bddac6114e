"""ExecutionEnvironment: sources, settings and execution of a DataSet program."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from engine.client.context import next_job_id
from engine.client.executors import execute_async, warm_up
from engine.client.job_client import JobClient, JobExecutionResult
from engine.client.user_files import collect_user_files
from engine.common.environment import Environment
from engine.connectors.simple import CollectionSpec, CollectSinkSpec, SequenceSource
from engine.connectors.source import Source, SourceSpec
from engine.core.config import Configuration
from engine.core.errors import EngineError, ProgramError
from engine.core.options import JobOptions
from engine.core.user_code import told_briefly
from engine.dataset.plan import Node, Port, lower
from engine.graph.plan import execution_plan_json
from engine.graph.stream_graph import build_job_graph
from engine.graph.transformation import Transformation
from engine.operators.base import OperatorSpec

if TYPE_CHECKING:
    from engine.dataset.data_set import DataSet

__all__ = ["ExecutionEnvironment"]

DEFAULT_JOB_NAME: Final = "Flink Python Job"


class ExecutionEnvironment(Environment):
    """Holds the sinks of one program, and its configuration."""

    def __init__(self, configuration: Configuration | None = None) -> None:
        super().__init__(configuration)
        self._sinks: list[Node] = []
        self._last_result: JobExecutionResult | None = None
        #: what ran last, for the message when there is nothing new to run
        self._last_call = ""

    @classmethod
    def get_execution_environment(cls, configuration: Configuration | None = None) -> Self:
        """Return an environment for where the program runs: the cluster of ``flink run``, else this process."""
        env = super().get_execution_environment(configuration)
        warm_up(env._config)
        return env

    set_degree_of_parallelism = Environment.set_parallelism
    get_degree_of_parallelism = Environment.get_parallelism

    # --- sources ---------------------------------------------------------------------------------------------------

    def read_text_file(self, file_path: str, charset_name: str = "UTF-8") -> DataSet:
        """The lines of a file, folder or glob, local or ``hdfs://``; large files are read in parallel."""
        from engine.connectors.files import TextFileSource

        source = TextFileSource((_checked_path(file_path, "read_text_file"),), charset_name.lower())
        return self.create_input(source, f"TextInputFormat ({file_path})")

    def read_text(self, path: str) -> DataSet:
        """The old Python API's name of ``read_text_file``."""
        return self.read_text_file(path)

    def read_csv(
        self,
        path: str,
        types: Sequence[Any] | None = None,
        line_delimiter: str = "\n",
        field_delimiter: str = ",",
        *,
        ignore_first_line: bool = False,
        include_fields: str | Sequence[bool] | Sequence[int] | None = None,
        lenient: bool = False,
        quote_character: str | None = None,
        comment_prefix: str | None = None,
    ) -> DataSet:
        """Tuples of the fields of CSV files.

        ``types``: of the included columns: ``int``, ``str``…, ``Types.INT()``, or sample values; None = all columns as
        text. ``include_fields``: "101", [True, False, True] or positions [0, 2]. ``lenient``: leave bad lines out.
        """
        from engine.connectors.csv_source import DelimitedFileSource, SkipFirstLineSource
        from engine.connectors.files import TextFileSource, absolute_path
        from engine.operators.csv_lines import CsvFormat, ParseCsvLine, field_kind

        if not field_delimiter or not line_delimiter:
            raise ProgramError("read_csv: field and line delimiter must not be empty.")
        try:
            kinds = tuple(field_kind(wanted) for wanted in types or ())
        except TypeError as error:
            raise ProgramError(str(error)) from None
        included = _included(include_fields)
        if kinds and included and sum(included) != len(kinds):
            raise ProgramError(f"read_csv: {len(kinds)} types for {sum(included)} included fields.")
        source: Source
        if line_delimiter in ("\n", "\r\n"):
            lines = TextFileSource((_checked_path(path, "read_csv"),))
            source = SkipFirstLineSource(lines) if ignore_first_line else lines
        else:
            source = DelimitedFileSource((absolute_path(path),), line_delimiter, ignore_first_line)
        csv_format = CsvFormat(field_delimiter, kinds, included, quote_character, comment_prefix, lenient)
        records = self.create_input(source, f"CsvInputFormat ({path})")
        return records.flat_map(ParseCsvLine(csv_format)).name("Parse CSV")

    def from_collection(self, data: Iterable[Any]) -> DataSet:
        """The elements, in order; the source's parallelism is 1."""
        rows = list(data)
        if not rows:
            raise ProgramError("from_collection: the collection is empty; the program would have nothing to do.")
        return self._source("CollectionInputFormat", CollectionSpec(tuple(rows)), single=True)

    def from_elements(self, *elements: Any) -> DataSet:
        return self.from_collection(elements)

    def generate_sequence(self, from_: int, to: int) -> DataSet:
        """The numbers ``from_`` to ``to``, both included, in parallel."""
        if not isinstance(from_, int) or not isinstance(to, int) or from_ > to:
            raise ProgramError(f"generate_sequence({from_!r}, {to!r}): expected two whole numbers, the smaller first.")
        return self.create_input(SequenceSource(from_, to), "NumberSequenceIterator")

    from_parallel_collection = generate_sequence

    def create_input(self, source: Source, name: str = "DataSource") -> DataSet:
        """The records of any bounded ``Source``."""
        return self._source(name, SourceSpec(source))

    def _source(self, name: str, spec: OperatorSpec, *, single: bool = False) -> DataSet:
        from engine.dataset.data_set import DataSet

        return DataSet(self, Port(Node(name, spec, kind="DataSource", forced_non_parallel=single)))

    # --- execution -------------------------------------------------------------------------------------------------

    def add_sink(self, node: Node) -> None:
        self._sinks.append(node)

    def _lowered(self, ends: list[Node]) -> list[Transformation]:
        if not ends:
            if self._last_call:
                raise ProgramError(
                    "No new data sinks have been defined since the last execution. The last execution refers to the "
                    "latest call to 'execute()', 'count()', 'collect()', or 'print()'."
                )
            raise ProgramError(
                "No data sinks have been created yet. A program needs at least one sink that consumes data. Examples "
                "are writing the data set or printing it."
            )
        return lower(ends, self.get_parallelism())

    def _start(self, ends: list[Node], job_name: str | None) -> JobClient:
        lowered = self._lowered(ends)
        files, paths = collect_user_files(self._config, self._cached_files)
        job_graph = build_job_graph(
            lowered,
            job_id=next_job_id(self._config),
            job_name=job_name or self._config.get(JobOptions.NAME) or DEFAULT_JOB_NAME,
            config=self._config,
            files=tuple(files),
            parameters=self.get_config().get_global_job_parameters(),
            batch=True,
        )
        self._sinks.clear()
        return execute_async(job_graph, paths, self._config)

    def execute(self, job_name: str | None = None, local: bool = False) -> JobExecutionResult:
        """Run all sinks defined since the last execution and wait for the end; detached, only for the acceptance.

        ``local``: run in this process (the old Python API). Raises: ProgramError if the program cannot become a job,
        JobExecutionError with the root cause if it fails.
        """
        if isinstance(job_name, bool):  # the old Python API: execute(local)
            job_name, local = None, job_name
        if local:
            self._config.set(JobOptions.TARGET, "local")
        try:
            client = self._start(list(self._sinks), job_name)
            if self._config.get_string(JobOptions.ATTACHED.key) == "false":
                # Somebody said detached (flink run -d, REST): the program ends, the job goes on.
                self._last_call = "execute()"
                return JobExecutionResult(client.get_job_id(), -1, {})
            return self._finish(client, "execute()")
        except EngineError as error:
            raise told_briefly(error) from error.__cause__

    def execute_async(self, job_name: str | None = None) -> JobClient:
        """Start the program and return at once with a handle on the job."""
        try:
            client = self._start(list(self._sinks), job_name)
        except EngineError as error:
            raise told_briefly(error) from error.__cause__
        self._last_call = "execute()"
        return client

    def _finish(self, client: JobClient, call: str) -> JobExecutionResult:
        try:
            self._last_result = client.get_job_execution_result().result()
        except KeyboardInterrupt:
            client.on_interrupt()
            raise
        self._last_call = call
        return self._last_result

    def collect(self, data: DataSet) -> list[Any]:
        """Run all pending sinks and return the records of ``data``. Use ``DataSet.collect``."""
        try:
            return self._collected(data)
        except EngineError as error:
            raise told_briefly(error) from error.__cause__

    def _collected(self, data: DataSet) -> list[Any]:
        operator_id = secrets.token_hex(16)
        producer = data._ports[0].node
        sink = Node(
            "Collect",
            CollectSinkSpec(),
            data.inputs(),
            follows=producer,
            kind="Sink",
            is_sink=True,
            uid_hash=operator_id,
        )
        client = self._start([*self._sinks, sink], None)
        try:
            rows = client.collect_all(operator_id)
        except KeyboardInterrupt:
            client.on_interrupt()
            raise
        self._finish(client, "collect()")
        return rows

    def get_last_job_execution_result(self) -> JobExecutionResult | None:
        """Return the result of the latest ``execute``, ``collect``, ``print`` or ``count``."""
        return self._last_result

    def get_execution_plan(self) -> str:
        """Return the plan of the sinks defined so far as JSON, without running it."""
        return execution_plan_json(self._lowered(list(self._sinks)), self._config, batch=True)


def _checked_path(path: Any, what: str) -> str:
    if not isinstance(path, str) or not path:
        raise ProgramError(f"{what}({path!r}): expected a path such as /data/in.txt or hdfs:///data/in.")
    return path


def _included(fields: str | Sequence[bool] | Sequence[int] | None) -> tuple[bool, ...]:
    """Return a flag per column of the file."""
    if fields is None:
        return ()
    if isinstance(fields, str):
        if not fields or set(fields) - set("01TtFf"):
            raise ProgramError(f"read_csv: include_fields is {fields!r}; expected a mask such as '101'.")
        return tuple(flag in "1Tt" for flag in fields)
    flags = list(fields)
    if flags and all(isinstance(flag, bool) for flag in flags):
        return tuple(bool(flag) for flag in flags)
    if not flags or not all(isinstance(flag, int) and flag >= 0 for flag in flags) or flags != sorted(set(flags)):
        raise ProgramError(f"read_csv: include_fields is {fields!r}; expected a mask, flags, or ascending positions.")
    return tuple(position in flags for position in range(max(flags) + 1))
