"""How a barrier overtakes records in a queue of elements. Pure; used by producers (``partition``) and ``channels``.

The barrier goes to the front, but never past another barrier, and says how many batches are behind it that belong
before it. Whoever takes it out finds these at the head of the queue: they have not moved.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque

from engine.core.records import Batch
from engine.protocol.stream import CheckpointBarrier, Element, Records

__all__ = ["insert_overtaking", "overtake", "overtaken_batches"]


def insert_overtaking(queue: deque[Element], barrier: CheckpointBarrier) -> None:
    """Put a barrier that has just come before all records that it may overtake."""
    _insert(queue, barrier, len(queue))


def overtake(queue: deque[Element], checkpoint_id: int) -> bool:
    """Let a barrier that waits in the queue go on unaligned. Return whether it was there."""
    for at, element in enumerate(queue):
        if type(element) is CheckpointBarrier and element.checkpoint_id == checkpoint_id:
            if element.options.unaligned:
                return False
            del queue[at]
            options = dataclasses.replace(element.options, unaligned=True)
            _insert(queue, dataclasses.replace(element, options=options), at)
            return True
    return False


def _insert(queue: deque[Element], barrier: CheckpointBarrier, end: int) -> None:
    """Put the barrier as far before the place ``end`` as it may go."""
    at = end
    num_overtaken = 0
    while at > 0 and type(queue[at - 1]) is not CheckpointBarrier:
        at -= 1
        num_overtaken += type(queue[at]) is Records
    queue.insert(at, dataclasses.replace(barrier, num_overtaken=num_overtaken))


def overtaken_batches(queue: deque[Element], barrier: CheckpointBarrier) -> list[Batch]:
    """Return the batches that the barrier, which has just been taken out of the queue, has overtaken in it."""
    records = (element.batch for element in queue if type(element) is Records)
    return list(itertools.islice(records, barrier.num_overtaken))
