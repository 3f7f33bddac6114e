"""TypeSerializer, where a PyFlink program looks for it."""

from engine.core.type_serializer import TypeSerializer

__all__ = ["TypeSerializer"]
