"""TimerService, where a PyFlink program looks for it."""

from engine.operators.process_functions import TimerService

__all__ = ["TimerService"]
