"""Where the JobManager of a YARN application is, through restarts and attempts: a file in the application's folder.

Each JobManager that begins to lead writes it. Clients need no ZooKeeper, and YARN tells them when nobody will lead any
more. TaskManagers and JobManagers find the leader through ``engine/ha``.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import Final, final

from engine.core.errors import EngineError, ExternalError
from engine.core.fs import FileSystem, file_system_of
from flink_yarn.cluster_spec import address_path
from flink_yarn.yarn_client import ApplicationReport, YarnClient

__all__ = ["ApplicationEndedError", "ApplicationLeader", "JobManagerAddress", "read_address"]

#: YARN finds out only after ten minutes, unless it is told otherwise, that an ApplicationMaster's node is gone.
FAILOVER_S: Final = 900.0
_POLL_S: Final = 0.2


class ApplicationEndedError(EngineError):
    """The application has ended; there will be no other leader."""

    def __init__(self, report: ApplicationReport) -> None:
        super().__init__(
            f"The YARN application {report.application_id} has ended ({report.state}, {report.final_status}): "
            f"{report.diagnostics or 'no reason given'}\n{report.logs}"
        )
        self.report = report


@dataclass(frozen=True)
class JobManagerAddress:
    rest: str  #: "http://host:port"
    is_highly_available: bool


def read_address(fs: FileSystem, home: str, application_id: str) -> JobManagerAddress | None:
    """Return what the file says, None while there is none, or half of one."""
    path = address_path(application_id, home)
    with contextlib.suppress(EngineError, ValueError, KeyError):
        if fs.status(path) is not None:
            with fs.open_read(path) as stream:
                said = json.loads(stream.read())
            return JobManagerAddress(str(said["rest"]), said.get("high-availability", "NONE") != "NONE")
    return None


@final
class ApplicationLeader:
    """A ``rest_client.Leader``. ``failover_s``: how long a change of the leader may take."""

    def __init__(self, client: YarnClient, home: str, application_id: str, failover_s: float = FAILOVER_S) -> None:
        self.failover_s = failover_s
        self._client = client
        self._home = home
        self._application_id = application_id

    def address(self, timeout_s: float) -> str:
        """Raises: ApplicationEndedError; ExternalError when nobody has said in time where he is."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(ExternalError):  # a ResourceManager that restarts ends no application
                report = self._client.application(self._application_id)
                if report.ended:
                    raise ApplicationEndedError(report)
            found = read_address(file_system_of("hdfs:/"), self._home, self._application_id)
            if found is not None:
                return found.rest
            if time.monotonic() > deadline:
                raise ExternalError(f"The JobManager of {self._application_id} has not said where it is.")
            time.sleep(_POLL_S)
