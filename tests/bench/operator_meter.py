"""What an operator costs while it takes up batches, stands at a barrier, and ends: for benches of state in files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from tests.bench.state_files import unnamed_bytes
from tests.bench.state_memory import resident
from tests.testing.operator_harness import OperatorHarness

__all__ = ["OperatorMeter"]


@final
class OperatorMeter:
    """``found``: figures by name, CPU time throughout. Memory is what is resident beyond that at the beginning, files
    are what is mapped of them at the barrier and before the end, at most."""

    def __init__(self, harness: OperatorHarness) -> None:
        self.found: dict[str, float] = {}
        self._harness = harness
        self._base = resident()
        self._base_files = unnamed_bytes()
        self._spent_s = self._longest_s = 0.0
        self._peak = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What is done within is a batch."""
        begin_s = time.process_time()
        yield
        step_s = time.process_time() - begin_s
        self._spent_s += step_s
        self._longest_s = max(self._longest_s, step_s)
        self._look()

    def barrier(self) -> None:
        """Stand at a barrier, without the snapshot's thread."""
        self._look_at_files()
        harness = self._harness
        self.found["entries, M"] = sum(p.num_entries() for p in harness.contexts[0].state.keyed.values()) / 1e6
        begin_s = time.process_time()
        harness.head.prepare_snapshot(1)
        harness.head.snapshot_state(1)
        self.found["barrier, ms"] = (time.process_time() - begin_s) * 1e3

    def end(self, watermark_ms: int, name: str, num_records: int) -> None:
        """Let the time go on to the last watermark. ``name``: what that is called."""
        self._look_at_files()
        begin_s = time.process_time()
        self._harness.watermark(watermark_ms)
        ended_s = time.process_time() - begin_s
        self._look()
        self.found["M a CPU-s"] = num_records / (self._spent_s + ended_s) / 1e6
        self.found[f"{name}, s"] = ended_s
        self.found["peak MB"] = self._peak / 1e6
        self.found["longest batch, ms"] = self._longest_s * 1e3

    def _look(self) -> None:
        self._peak = max(self._peak, resident() - self._base)

    def _look_at_files(self) -> None:
        in_files_mb = (unnamed_bytes() - self._base_files) / 1e6
        self.found["files, MB"] = max(self.found.get("files, MB", 0.0), in_files_mb)
