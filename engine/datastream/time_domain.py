"""TimeDomain, where a PyFlink program looks for it."""

from engine.operators.process_functions import TimeDomain

__all__ = ["TimeDomain"]
