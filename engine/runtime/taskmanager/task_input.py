"""Connects the channels of a task: to partitions of the same slot directly, to others over the transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.core.errors import ExternalError
from engine.protocol.control import InputChannelDescriptor, InputGateDescriptor
from engine.runtime.exchange.channels import Channel, LocalChannel, RemoteChannel, initial_credit
from engine.runtime.exchange.gate import InputGate
from engine.runtime.exchange.partition import PartitionRegistry
from engine.runtime.exchange.transport import PARTITION_WAIT_MS, Transport
from engine.runtime.exchange.wire import Subscribe

__all__ = ["connect_gate"]


def connect_gate(
    gates: Sequence[InputGateDescriptor],
    inputs_first: Sequence[int],
    registry: PartitionRegistry,
    transport: Transport,
) -> InputGate:
    """Return the gate with all its channels; those of partitions that do not exist yet begin when they do.

    Raises: ExternalError when a producer's host cannot be resolved.
    """
    channels = [(gate.input_index, descriptor) for gate in gates for descriptor in gate.channels]
    gate = InputGate([input_index for input_index, _ in channels], inputs_first)
    credit = initial_credit(len(channels))
    for channel, (_, descriptor) in zip(gate.channels, channels, strict=True):
        if descriptor.address == transport.address:
            _connect_local(gate, channel, descriptor, registry, transport.loop.call_later)
        else:
            _connect_remote(gate, channel, descriptor, transport, credit)
    return gate


def _connect_local(
    gate: InputGate,
    channel: Channel,
    descriptor: InputChannelDescriptor,
    registry: PartitionRegistry,
    call_later: Callable[[float, Callable[[], None]], Any],
) -> None:
    source = LocalChannel(descriptor.subpartition_index, lambda: gate.on_data(channel))
    channel.source = source
    partition = registry.find(descriptor.partition_id)
    if partition is not None:
        source.attach(partition)
        return
    registry.wait_for(descriptor.partition_id, source.attach)

    def give_up() -> None:
        if not source.is_attached and not source.is_closed:
            registry.stop_waiting(descriptor.partition_id, source.attach)
            gate.on_error(
                ExternalError(
                    f"Partition {descriptor.partition_id} was not produced within {PARTITION_WAIT_MS // 1000} s: "
                    "its task never started in this slot."
                )
            )

    call_later(PARTITION_WAIT_MS / 1000, give_up)


def _connect_remote(
    gate: InputGate, channel: Channel, descriptor: InputChannelDescriptor, transport: Transport, credit: int
) -> None:
    source = RemoteChannel(credit, lambda: gate.on_data(channel), gate.on_error)
    channel.source = source
    source.on_timed_barrier = lambda barrier: gate.on_timed_barrier(barrier)
    connection = transport.connect(descriptor.address)
    request = Subscribe(descriptor.partition_id, descriptor.subpartition_index, credit)
    number = connection.open_channel(request, source)
    source.add_credit = lambda added: connection.add_credit(number, added)
    source.unsubscribe = lambda: connection.close_channel(number)
