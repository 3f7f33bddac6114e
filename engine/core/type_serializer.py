"""TypeSerializer: PyFlink's interface for what writes values of one type into a stream and reads them back.

Programs name it where they write window assigners of their own. The engine calls none of them: it pickles.
"""

from __future__ import annotations

import abc
from typing import IO, Any

__all__ = ["TypeSerializer"]


class TypeSerializer(abc.ABC):
    @abc.abstractmethod
    def serialize(self, element: Any, stream: IO[bytes]) -> None:
        """Write a value."""

    @abc.abstractmethod
    def deserialize(self, stream: IO[bytes]) -> Any:
        """Return the value that stands next in the stream."""

    def __class_getitem__(cls, parameters: Any) -> Any:
        """``TypeSerializer[TimeWindow]``, as PyFlink's programs write it."""
        return cls

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
