"""What is kept for people who ask what went wrong: who has led, and which exceptions jobs had under which leader.

On top of ``MetadataStore``, behind the fence like everything else; each value is small and has a bound. Nothing depends
on it: what cannot be read is left out, and the log says so. Blocks: call from an I/O thread.

====================================  =================================================================================
``leaders``                           JSON: the last leaders, oldest first: since when, where, why they ended
``history/<job id>``                  JSON: the last exceptions of a job, oldest first; kept as long as the job's result
====================================  =================================================================================
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.errors import EngineError
from engine.core.ids import FencingToken, JobID, ResourceID
from engine.graph.execution_graph import ExceptionEntry
from engine.ha.contracts import VALUE_BYTES_MAX, MetadataStore
from engine.protocol.control import ErrorInfo

__all__ = ["LEADERS_MAX", "LeaderHistory", "LeaderRecord"]

logger = logging.getLogger(__name__)

#: A cluster that changes its leader each minute is still seen to do so for a quarter of an hour.
LEADERS_MAX: Final = 16
#: Jobs that are known no more, as ``job_store`` keeps 200 results.
JOBS_MAX: Final = 200
#: of a message or a trace: beginning and end say what happened
TEXT_MAX: Final = 8_000
_WITHOUT_A_WORD: Final = "It ended without a word: killed, cut off, or its host was lost."


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """One leadership of one JobManager."""

    token: str
    address: str  #: of REST, or host:port for TaskManagers
    since_ms: int
    until_ms: int = 0  #: 0 = it leads; else when it stepped down, or when its successor began
    why_ended: str = ""
    container: str = ""  #: on YARN
    log_url: str = ""  #: on YARN: its container's logs


@final
class LeaderHistory:
    """Bound to one leader's token. Writes raise LeadershipLostError, and ExternalError as MetadataStore does."""

    def __init__(self, metadata: MetadataStore, token: FencingToken) -> None:
        self._metadata = metadata
        self._token = token
        self._written: set[JobID] = set()

    # --- leaders -----------------------------------------------------------------------------------------------------

    def begin(self, record: LeaderRecord, former_end: str = "") -> list[LeaderRecord]:
        """Note that we lead; return all that are known, oldest first, ours last.

        ``former_end``: why the one before has ended, "" when only it could know.
        """
        known = [one for one in self.leaders() if one.token != record.token]
        if known and not known[-1].until_ms:
            why = former_end or _WITHOUT_A_WORD
            known[-1] = dataclasses.replace(known[-1], until_ms=record.since_ms, why_ended=why)
        known = [*known, record][-LEADERS_MAX:]
        self._put_leaders(known)
        return known

    def end(self, now_ms: int, why: str) -> None:
        """Note that we lead no more; called while we still may write."""
        known = self.leaders()
        if known and known[-1].token == self._token:
            known[-1] = dataclasses.replace(known[-1], until_ms=now_ms, why_ended=why[:TEXT_MAX])
            self._put_leaders(known)

    def leaders(self) -> list[LeaderRecord]:
        fields = {field.name for field in dataclasses.fields(LeaderRecord)}
        found = []
        for said in self._read("leaders"):
            try:
                found.append(LeaderRecord(**{name: said[name] for name in said if name in fields}))
            except TypeError as error:
                logger.warning("an entry of the history of leaders is left out: %s", error)
        return found

    def _put_leaders(self, records: Iterable[LeaderRecord]) -> None:
        value = json.dumps([dataclasses.asdict(one) for one in records]).encode()
        self._metadata.put(self._token, "leaders", value)

    # --- exceptions --------------------------------------------------------------------------------------------------

    def put_exceptions(self, job_id: JobID, entries: Sequence[ExceptionEntry]) -> None:
        """Replace what is kept of a job; the oldest are dropped when all are too large together."""
        rows = [_row(entry) for entry in entries]
        while len(value := json.dumps(rows).encode()) > VALUE_BYTES_MAX // 2:
            del rows[0]
        if job_id not in self._written:
            self._drop_forgotten(job_id)
        self._metadata.put(self._token, f"history/{job_id}", value)
        self._written.add(job_id)

    def exceptions(self, job_id: JobID) -> list[ExceptionEntry]:
        found = []
        for row in self._read(f"history/{job_id}"):
            try:
                found.append(_entry(row))
            except (KeyError, TypeError) as error:
                logger.warning("job=%s: an entry of its exceptions is left out: %r", job_id, error)
        return found

    def _drop_forgotten(self, coming: JobID) -> None:
        """Keep no more histories of jobs whose result nobody knows any more than there are results."""
        kept = self._metadata.list("history")
        if len(kept) < JOBS_MAX:
            return
        known = {*self._metadata.list("jobs"), *self._metadata.list("results"), coming}
        for job_id in kept:
            if job_id not in known:
                self._metadata.delete(self._token, f"history/{job_id}")

    def _read(self, name: str) -> list[dict[str, Any]]:
        try:
            value = self._metadata.get(name)
            rows = [] if value is None else json.loads(value)
        except (EngineError, ValueError) as error:
            logger.warning("%s cannot be read, it is left out: %s", name, error)
            return []
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX // 2]}\n…\n{text[-TEXT_MAX // 2 :]}"


def _row(entry: ExceptionEntry) -> dict[str, Any]:
    row = dataclasses.asdict(entry)
    row["error"]["message"], row["error"]["trace"] = _cut(entry.error.message), _cut(entry.error.trace)
    return row


def _entry(row: dict[str, Any]) -> ExceptionEntry:
    error, resource_id = row["error"], row.get("resource_id")
    return ExceptionEntry(
        ErrorInfo(str(error["type_name"]), str(error["message"]), str(error["trace"]), str(error["domain"])),
        int(row["timestamp_ms"]),
        row.get("task_name"),
        row.get("endpoint"),
        None if resource_id is None else ResourceID(resource_id),
        str(row.get("log_url", "")),
    )
