"""Record batches in a file of the local disk, mapped: they are resident only while they are read.

The file is unlinked: it goes with the last batch that somebody keeps of it, at the latest with the process; a forked
child reads it as it was at the fork.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.core.errors import ExternalError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["write_batches"]


def write_batches(batches: Sequence[pa.RecordBatch], folder: str, what: str) -> tuple[list[pa.RecordBatch], mmap.mmap]:
    """Return the batches, one at least, as they lie in a new file, and its mapping. All have the same schema; ``what``
    they are, for messages. Raises: ExternalError."""
    import pyarrow as pa

    try:
        with tempfile.TemporaryFile(dir=folder, prefix="batches-") as file:
            with pa.ipc.new_stream(file, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except OSError as error:
        raise ExternalError(
            f"Cannot put {what} into a file in {folder}: {error.strerror}. State on columns that is more than its "
            "share of managed memory is kept there; leave room in io.tmp.dirs, or raise "
            "taskmanager.memory.managed.size."
        ) from error
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.ipc.open_stream(pa.py_buffer(mapping), options=options) as reader:
        written = [reader.read_next_batch() for _ in batches]
    mapping.madvise(mmap.MADV_DONTNEED)
    return written, mapping
