"""NumberSequenceSource, where a PyFlink program looks for it."""

from engine.connectors.simple import SequenceSource as NumberSequenceSource

__all__ = ["NumberSequenceSource"]
