"""JobStatus, where a PyFlink program looks for it."""

from engine.protocol.lifecycle import JobStatus

__all__ = ["JobStatus"]
