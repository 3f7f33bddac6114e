"""In-flight records of unaligned checkpoints as files, and back: by input of the task that they were going to.

The consumer keeps them all: what it had received, and what the barrier had overtaken at the producer, which follows the
barrier at once (``exchange/channels``). So each record is in exactly one place: processed before the snapshot, or here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.checkpoint.restored_state import read_file
from engine.core.errors import CorruptStateError
from engine.core.records import Batch
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.functions import RuntimeContext
from engine.protocol.checkpoint import InFlightHandle
from engine.protocol.control import TaskDeployment
from engine.protocol.stream import Records
from engine.runtime.exchange.partitioners import make_channel_selector
from engine.runtime.exchange.wire import HEADER, Decoder, Encoder, FrameKind

__all__ = ["encode_batches", "restored_batches"]


def encode_batches(batches: Sequence[Batch], operator_name: str) -> bytes:
    """Raises: UserCodeError when a record cannot be pickled."""
    encoder = Encoder(operator_name)
    parts: list[Any] = []
    for batch in batches:
        for frame in encoder.encode(Records(batch)):
            parts += (HEADER.pack(frame.size_bytes, 0, frame.kind), *frame.buffers)
    return b"".join(parts)


def decode_batches(content: bytes) -> Iterator[Batch]:
    decoder = Decoder()
    view, at = memoryview(content), 0
    while at < len(view):
        size, _, kind = HEADER.unpack_from(view, at)
        at += HEADER.size
        element = decoder.decode(FrameKind(kind), view[at : at + size])
        at += size
        if element is not None:
            assert isinstance(element, Records), element
            yield element.batch


def restored_batches(
    handles: Sequence[InFlightHandle],
    input_keys: Mapping[int, Any],
    deployment: TaskDeployment,
    runtime_context: RuntimeContext,
) -> Iterator[tuple[int, Batch]]:
    """Yield the batches that this subtask takes up, with their input. ``input_keys``: key selectors of hash edges, by
    input; of a former subtask's records only those whose keys are this one's now.

    Raises: CorruptStateError when a file is damaged, or cannot be dealt out because the input has no key any more.
    """
    for handle in handles:
        batches = decode_batches(read_file(handle.file))
        if not handle.is_keyed:
            yield from ((handle.input_index, batch) for batch in batches)
            continue
        if handle.input_index not in input_keys:
            raise CorruptStateError(
                f"In-flight records of input {handle.input_index} of {deployment.vertex_name!r} were by key, and the "
                "input has no key any more. Restore from a savepoint or an aligned checkpoint."
            )
        selector = make_channel_selector(
            Partitioning(ShipStrategy.HASH, input_keys[handle.input_index]),
            deployment.parallelism,
            operator_name=deployment.vertex_name,
            subtask_index=0,
            max_parallelism=deployment.max_parallelism,
        )
        selector.open(runtime_context)
        for batch in batches:
            for channel, part in selector.split(batch):
                if channel == deployment.subtask_index:
                    yield handle.input_index, part
        selector.close()
