"""JobID, where a PyFlink program looks for it."""

from engine.core.ids import JobID

__all__ = ["JobID"]
