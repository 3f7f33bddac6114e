"""Broadcast streams: their elements go to every subtask, which keeps them as broadcast state. PyFlink's names."""

from __future__ import annotations

from typing import Any

from engine.core.errors import ProgramError
from engine.core.type_info import TypeInformation
from engine.datastream.data_stream import DataStream, check_kind
from engine.datastream.keyed_stream import KeyedStream
from engine.graph.transformation import Partitioning, ShipStrategy, Transformation
from engine.operators.broadcast import BroadcastProcessSpec
from engine.operators.process_functions import BroadcastProcessFunction, KeyedBroadcastProcessFunction
from engine.state.descriptors import MapStateDescriptor

__all__ = ["BroadcastConnectedStream", "BroadcastStream"]


class BroadcastStream:
    """What ``stream.broadcast(descriptor, …)`` returns: only good for ``other.connect(it)``."""

    def __init__(self, input_stream: DataStream, broadcast_state_descriptors: tuple[Any, ...]) -> None:
        for descriptor in broadcast_state_descriptors:
            if not isinstance(descriptor, MapStateDescriptor):
                raise ProgramError(f"broadcast({descriptor!r:.80}): expected MapStateDescriptors.")
        names = [descriptor.name for descriptor in broadcast_state_descriptors]
        if len(set(names)) < len(names):
            raise ProgramError(f"broadcast(…): two of the descriptors have one name: {names}.")
        self.input_stream = input_stream
        self.broadcast_state_descriptors: tuple[MapStateDescriptor, ...] = broadcast_state_descriptors


class BroadcastConnectedStream:
    """A stream, keyed or not, with a broadcast stream beside it."""

    def __init__(
        self,
        non_broadcast_stream: DataStream,
        broadcast_stream: BroadcastStream,
        broadcast_state_descriptors: tuple[MapStateDescriptor, ...],
    ) -> None:
        self.non_broadcast_stream = non_broadcast_stream
        self.broadcast_stream = broadcast_stream
        self.broadcast_state_descriptors = tuple(broadcast_state_descriptors)

    def process(
        self,
        func: BroadcastProcessFunction | KeyedBroadcastProcessFunction,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Run a KeyedBroadcastProcessFunction on a keyed stream, a BroadcastProcessFunction on any other."""
        stream = self.non_broadcast_stream
        check_kind(func, "process", BroadcastProcessFunction, KeyedBroadcastProcessFunction)
        is_keyed = isinstance(stream, KeyedStream)
        if isinstance(func, KeyedBroadcastProcessFunction) is not is_keyed:
            expected = "KeyedBroadcastProcessFunction" if is_keyed else "BroadcastProcessFunction"
            seen = "keyed" if is_keyed else "not keyed"
            raise ProgramError(f"process({type(func).__name__}()): the stream is {seen}; expected a {expected}.")
        selector = stream._key_selector if isinstance(stream, KeyedStream) else None
        shipped = self.broadcast_stream.input_stream._ship(Partitioning(ShipStrategy.BROADCAST))
        edges = [member.edge(0) for member in stream._members]
        edges += [member.edge(1) for member in shipped._members]
        spec = BroadcastProcessSpec(func, self.broadcast_state_descriptors, selector, output_type)
        name = "Co-Process-Broadcast-Keyed" if is_keyed else "Co-Process-Broadcast"
        return DataStream(stream._env, Transformation(name=name, spec=spec, inputs=edges, output_type=output_type))
