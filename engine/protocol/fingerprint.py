"""What a deployed task was told to be, in a few bytes: another JobManager sees whether it would tell the same.

Pure. Left out is what the task started from: it has gone on since.
"""

from __future__ import annotations

import dataclasses
import hashlib

from engine.protocol.control import TaskDeployment

__all__ = ["fingerprint"]


def fingerprint(deployment: TaskDeployment) -> str:
    """Return the same for two deployments of one attempt only if chain, parallelism, inputs with the addresses of their
    producers, and outputs are the same."""
    chain = hashlib.sha256(deployment.chain).digest()
    told = repr(dataclasses.replace(deployment, chain=chain, restore=None))
    return hashlib.sha256(told.encode()).hexdigest()[:32]
