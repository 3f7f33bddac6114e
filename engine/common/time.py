"""Duration, Instant and Time, where a PyFlink program looks for it."""

from engine.time.watermarks import Duration, Instant, Time

__all__ = ["Duration", "Instant", "Time"]
