"""What a JobManager needs in order to be replaced: election, the leader's address, durable metadata behind a fence.

Implementations: ``memory`` (tests, simulation), ``files`` (one machine, or a shared local file system), ``zookeeper``.
They pass one contract suite (``tests/contract/test_ha.py``). Not here: what is stored (``job_store``), how a JobManager
lives with it (``engine/cluster``).

The one rule: a token is granted to one contender at a time, and once another one has been granted, no write with an
earlier token takes effect, whenever it was sent. All else may be late: a contender may believe for a while that it
leads though it does not, so it must write before it acts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Final, Protocol

from engine.core.errors import CorruptStateError, EngineError
from engine.core.ids import FencingToken
from engine.core.late_dataclass import dataclass

__all__ = [
    "VALUE_BYTES_MAX",
    "Contender",
    "ElectionListener",
    "HighAvailabilityServices",
    "LeaderElection",
    "LeaderInformation",
    "LeaderRetrieval",
    "LeadershipLostError",
    "MetadataStore",
    "check_name",
    "leader_from_json",
    "leader_to_json",
]

#: of a value in MetadataStore: ZooKeeper refuses requests of 1 MiB
VALUE_BYTES_MAX: Final = 512 * 1024

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class LeadershipLostError(EngineError):
    """A write came from a JobManager that does not lead any more; nothing was changed."""


@dataclass(frozen=True, slots=True)
class LeaderInformation:
    """Where the leader is. Published by itself once it can be reached."""

    token: FencingToken
    rpc_host: str
    rpc_port: int
    rest_address: str = ""  #: "http://host:port", "" without REST


@dataclass(frozen=True)
class Contender:
    """A JobManager of a deployment that has one at a time, such as an attempt of a YARN application.

    It does not stand behind one that it replaces: that one is dead or cut off, and its session would be waited for in
    vain. Whether it still believes to lead does not matter, its writes are fenced off.
    """

    deployment: str  #: the application's id; two with one cluster id must not share what is written down
    attempt: int  #: a later attempt replaces earlier ones, and a later process those of the same attempt
    #: whether a deployment has ended and will not be back; blocks, raises ExternalError when nobody can tell
    has_ended: Callable[[str], bool]

    def to_json(self) -> bytes:
        return json.dumps({"deployment": self.deployment, "attempt": self.attempt}).encode()


def leader_to_json(information: LeaderInformation) -> bytes:
    return json.dumps(dataclasses.asdict(information)).encode()


def leader_from_json(content: bytes, where: str) -> LeaderInformation:
    """Raises: CorruptStateError that says ``where`` it was found."""
    try:
        said = json.loads(content)
        return LeaderInformation(
            FencingToken(said["token"]), str(said["rpc_host"]), int(said["rpc_port"]), str(said["rest_address"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStateError(f"The leader's address in {where} cannot be understood: {content[:200]!r}.") from error


def check_name(name: str) -> str:
    """Return the name of a value; a bad one is a bug of ours."""
    assert _NAME.fullmatch(name), name
    return name


class ElectionListener(Protocol):
    """The contender. Called on the event loop of ``LeaderElection.start``, grant and revoke in turns."""

    def leadership_granted(self, token: FencingToken) -> None: ...

    def leadership_revoked(self, reason: str) -> None:
        """Stop acting at once: another one may lead already."""
        ...

    def election_failed(self, error: EngineError) -> None:
        """This contender can never lead any more (refused credentials); the process had better end."""
        ...


class LeaderElection(Protocol):
    """One contender's part in the election of its cluster's leader."""

    async def start(self, listener: ElectionListener) -> None:
        """Join. Raises: ConfigError, ExternalError when the service does not answer in time or refuses."""
        ...

    async def publish(self, information: LeaderInformation) -> None:
        """Tell everybody where we are; from then on retrievals return it. Raises LeadershipLostError, ExternalError."""
        ...

    async def close(self) -> None:
        """Leave; if we led, somebody else is elected at once. Never raises; may be called again."""
        ...


class LeaderRetrieval(Protocol):
    """Tells where the leader is, for TaskManagers, clients and standby JobManagers."""

    async def leader(self, timeout_s: float, *, other_than: FencingToken | str = "") -> LeaderInformation:
        """Return the published leader, waiting for one that has not the token ``other_than``.

        Raises: ExternalError when there is none in time; the message says what was asked (quorum, path).
        """
        ...

    async def replaced(self, token: FencingToken) -> None:
        """Return when another leader than ``token`` has been published. A leader that is only gone is not replaced."""
        ...

    async def close(self) -> None: ...


class MetadataStore(Protocol):
    """Small values (1 byte to 512 KiB) by name, durable. Names are relative paths: ``jobs/<id>/graph``.

    Methods block: call them from an I/O thread. All raise ExternalError when the service cannot be reached within its
    time-out; whether a write took effect then is not known, and it may be tried again (writes are idempotent).
    """

    def put(self, token: FencingToken, name: str, value: bytes) -> None:
        """Create or replace. Raises LeadershipLostError, and then nothing was changed."""
        ...

    def delete(self, token: FencingToken, name: str) -> None:
        """Delete the value and all below it; does nothing when there is none. Raises LeadershipLostError."""
        ...

    def get(self, name: str) -> bytes | None: ...

    def list(self, name: str) -> list[str]:
        """Return the last parts of the names directly below ``name``, sorted; empty when there are none."""
        ...


class HighAvailabilityServices(Protocol):
    """All of one cluster, in one process. Made by ``engine.ha.services.high_availability_services(config)``."""

    @property
    def storage_dir(self) -> str:
        """URI of the cluster's folder below ``high-availability.storageDir``, for what is too large for metadata."""
        ...

    def election(self) -> LeaderElection: ...

    def retrieval(self) -> LeaderRetrieval: ...

    def metadata(self) -> MetadataStore: ...

    def clean_up(self, token: FencingToken) -> None:
        """The cluster has ended for good: delete its metadata and its folder. Blocks. Raises LeadershipLostError."""
        ...

    async def close(self) -> None:
        """Let go of connections; deletes nothing but what is this process's own. Never raises."""
        ...
