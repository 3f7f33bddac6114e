"""What writes windows into a stream and reads them back, by PyFlink's names: a window assigner of a program's own
returns one of them. The engine does not ask for it."""

from __future__ import annotations

import struct
from typing import IO, Any, Final, final

from engine.core.type_serializer import TypeSerializer
from engine.time.windows import CountWindow, GlobalWindow, TimeWindow

__all__ = ["CountWindowSerializer", "GlobalWindowSerializer", "TimeWindowSerializer"]

_NUMBER: Final = struct.Struct(">q")
_SPAN: Final = struct.Struct(">qq")


@final
class TimeWindowSerializer(TypeSerializer):
    def serialize(self, element: Any, stream: IO[bytes]) -> None:
        stream.write(_SPAN.pack(element.start, element.end))

    def deserialize(self, stream: IO[bytes]) -> TimeWindow:
        return TimeWindow(*_SPAN.unpack(stream.read(_SPAN.size)))


@final
class CountWindowSerializer(TypeSerializer):
    def serialize(self, element: Any, stream: IO[bytes]) -> None:
        stream.write(_NUMBER.pack(element.id))

    def deserialize(self, stream: IO[bytes]) -> CountWindow:
        return CountWindow(*_NUMBER.unpack(stream.read(_NUMBER.size)))


@final
class GlobalWindowSerializer(TypeSerializer):
    def serialize(self, element: Any, stream: IO[bytes]) -> None:
        stream.write(b"\0")

    def deserialize(self, stream: IO[bytes]) -> GlobalWindow:
        stream.read(1)
        return GlobalWindow.get()
