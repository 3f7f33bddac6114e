"""Configuration, where a PyFlink program looks for it."""

from engine.core.config import Configuration

__all__ = ["Configuration"]
