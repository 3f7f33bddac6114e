"""OutputTag, where a PyFlink program looks for it."""

from engine.operators.output_tag import OutputTag

__all__ = ["OutputTag"]
