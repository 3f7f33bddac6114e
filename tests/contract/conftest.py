"""Both backends of keyed state, each with what a test may do with either."""

from __future__ import annotations

import itertools

import pytest

from engine.core.clock import ManualClock
from engine.state import heap_states
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.parts import FilePart
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend


class Forgetful(dict):
    """Remembers no encoded key."""

    def __setitem__(self, key, value):
        pass


class Backends:
    """Makes backends of one kind. ``memory_bytes`` is so small for rocksdb that most rows leave the cache."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.numbers = itertools.count()
        self.made = []

    @property
    def is_in_memory(self):
        return self.kind.startswith("hashmap")

    def make(self, clock=None, max_parallelism=128):
        clock = clock or ManualClock(1000)
        if self.kind == "hashmap":
            backend = HeapKeyedStateBackend(clock, max_parallelism)
        elif self.kind == "hashmap behind a barrier":  # what is written goes to ``Table.recent``
            backend = HeapKeyedStateBackend(clock, max_parallelism, incremental=True)
            backend.begin_epoch(1)
            backend.begin_epoch(2)
        else:
            number = next(self.numbers)
            backend = RocksDBKeyedStateBackend(
                clock, max_parallelism, folder=f"{self.folder}/db-{number}", memory_bytes=0, session=f"s{number}"
            )
            if self.kind == "rocksdb without a cache":
                backend._cache._resize = lambda: None
                backend._cache._young_max = backend._cache._dirty_max = 0
                backend._encoded = Forgetful()
        self.made.append(backend)
        return backend

    def snapshot(self, backend, key_groups=range(128)):
        """Return canonical chunks as of now."""
        if isinstance(backend, FilePart):
            backend.freeze_rows()
        return dict(backend.snapshot(key_groups))

    def restored(self, backend, clock=None):
        restored = self.make(clock)
        restored.restore(self.snapshot(backend))
        return restored

    def close(self):
        for backend in self.made:
            backend.close()
        self.made = []


@pytest.fixture(params=["hashmap", "hashmap behind a barrier", "rocksdb", "rocksdb without a cache"])
def backends(request, tmp_path, monkeypatch):
    monkeypatch.setattr(heap_states, "RECENT_CELLS_MIN", 0)
    made = Backends(request.param, str(tmp_path))
    yield made
    made.close()
