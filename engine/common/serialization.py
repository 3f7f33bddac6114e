"""Encoder, where a PyFlink program looks for it."""

from engine.connectors.file_system import Encoder

__all__ = ["Encoder"]
