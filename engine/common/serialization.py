"""Encoder, where a PyFlink program looks for it."""

from engine.connectors.part_writers import Encoder

__all__ = ["Encoder"]
