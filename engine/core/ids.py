"""Typed identifiers. Every id is a ``str`` subtype, so it prints, pickles and travels in JSON as its hex form.

Not here: what an id points at. See ``engine/graph`` and ``engine/runtime/jobmanager``.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Self

from engine.core.errors import ConfigError

__all__ = [
    "AllocationID",
    "ExecutionAttemptID",
    "FencingToken",
    "IntermediateDatasetID",
    "JobID",
    "JobVertexID",
    "OperatorID",
    "ResourceID",
    "ResultPartitionID",
    "SlotID",
]


class _HexID(str):
    """32 lower-case hex digits, as Flink's AbstractID prints."""

    __slots__ = ()

    @classmethod
    def generate(cls) -> Self:
        return cls(secrets.token_hex(16))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the id; raises ConfigError when ``text`` is not 32 hex digits."""
        value = text.strip().lower()
        if len(value) != 32 or any(c not in "0123456789abcdef" for c in value):
            raise ConfigError(f"{text!r} is not a {cls.__name__}; expected 32 hexadecimal digits.")
        return cls(value)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the id derived from ``text``: the same text gives the same id in every process and run."""
        return cls(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())


class JobID(_HexID):
    """One submission of a JobGraph."""

    __slots__ = ()


class JobVertexID(_HexID):
    """A vertex (chain) of a JobGraph; derived from its head operator, so stable between submissions."""

    __slots__ = ()


class OperatorID(_HexID):
    """An operator; derived from its ``uid`` if the user gave one, else from its place in the graph."""

    __slots__ = ()


class IntermediateDatasetID(_HexID):
    """An edge of a JobGraph: what one vertex hands to one input of another."""

    __slots__ = ()


class AllocationID(_HexID):
    """One use of a slot by one job. A slot process lives exactly as long as its allocation."""

    __slots__ = ()


class FencingToken(_HexID):
    """The leader session of a JobManager; a message with another one is refused."""

    __slots__ = ()


class ResourceID(str):
    """A TaskManager process, e.g. ``host:port-3fa2b1`` or a YARN container id."""

    __slots__ = ()


class SlotID(str):
    """A slot of a TaskManager: ``<ResourceID>_<index>``."""

    __slots__ = ()

    @classmethod
    def of(cls, resource_id: ResourceID, index: int) -> SlotID:
        return cls(f"{resource_id}_{index}")


class ExecutionAttemptID(str):
    """One attempt of one subtask: ``<vertex>_<subtask>_<attempt>``, unique within a job."""

    __slots__ = ()

    @classmethod
    def of(cls, vertex_id: JobVertexID, subtask_index: int, attempt_number: int) -> ExecutionAttemptID:
        return cls(f"{vertex_id}_{subtask_index}_{attempt_number}")


class ResultPartitionID(str):
    """What one attempt produces on one edge: ``<edge>_<subtask>_<attempt>``."""

    __slots__ = ()

    @classmethod
    def of(cls, dataset_id: IntermediateDatasetID, subtask_index: int, attempt_number: int) -> ResultPartitionID:
        return cls(f"{dataset_id}_{subtask_index}_{attempt_number}")
