"""How RocksDB is set up for keyed state: its memory, and that checkpoints write little again of what did not change.

Large values lie in files of their own (RocksDB calls them blobs), which merging tables leaves alone; what merges is the
keys and small values. Figures: docs/decisions/0036-rocksdb-increments.md.
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any, Final, final

__all__ = ["MergePlan", "RocksSetup", "ValuePlaces"]

#: A row that changes again and again is written once for each buffer that fills up. With 16 MB, what changed while a
#: long full checkpoint was uploaded came six times over in the increment behind it.
_WRITE_BUFFER_MAX: Final = 64 << 20
#: Files are cut as if write buffers had at most that: smaller ones are merged and given up in smaller portions.
_FILE_UNIT_MAX: Final = 16 << 20
#: Smaller values stay beside their keys, where they are compressed together: a value in a file of its own takes its
#: key and 32 bytes more.
_BLOB_BYTES_MIN: Final = 256
#: This share of the files of values, the oldest, is given up in the course of each pass through the keys; what lives in
#: them moves on. More of it is more to write again at a time, less is more garbage on the disk.
_OLD_SHARE: Final = 0.08
#: They are given up without waiting for that when this much of them is garbage. Less would be reached by all the files
#: of a state that was filled at once in the same moment, and then as much is written again as all of them hold.
_GARBAGE_SHARE: Final = 0.9
#: Smaller tables cost more than they are worth: RocksDB syncs each.
_TABLE_BYTES_MIN: Final = 256 << 10
#: So many flushes wait until they are merged. More of them make reads slower, and files of values whose rows were all
#: written again go when the tables that name them are merged. Less would merge the same tables more often.
_FLUSHES: Final = 4
#: How much larger each level is than the one above: a table is merged with as many of the level below.
_LEVEL_FACTOR: Final = 5
_LEVELS: Final = 7
#: RocksDB reads each table of a merge ahead by that, and has buffers of that for each file that it writes; it accounts
#: for neither. Its defaults (2 MB and 1 MB) are several times all of a small task's memory.
_FILE_BUFFER_BYTES: Final = 128 << 10
#: Of ``mallopt``: how many heaps the C library may have.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


@final
class RocksSetup:
    """Options for one database. ``memory_bytes``: all of its caches and write buffers."""

    def __init__(self, rocksdict: ModuleType, memory_bytes: int) -> None:
        self._rocksdict = rocksdict
        self._memory_bytes = memory_bytes
        self.write_buffer_bytes = min(max(1 << 20, memory_bytes // 4), _WRITE_BUFFER_MAX)
        self._unit_bytes = min(self.write_buffer_bytes, _FILE_UNIT_MAX)

    def options(self) -> Any:
        """Return new options with a cache of their own."""
        _share_arenas()
        rocksdict = self._rocksdict
        cache = rocksdict.Cache(self._memory_bytes)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        # Write buffers are charged to the cache: together they stay within it.
        options.set_write_buffer_manager(
            rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(self._memory_bytes // 2, False, cache)
        )
        options.set_write_buffer_size(self.write_buffer_bytes)
        # Two that are full at a time; with less a checkpoint would wait for the last one that filled up.
        options.set_max_write_buffer_number(4)
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(cache)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        blocks.set_bloom_filter(10, False)
        options.set_block_based_table_factory(blocks)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        options.set_max_background_jobs(2)
        options.set_max_open_files(256)
        options.set_compaction_readahead_size(_FILE_BUFFER_BYTES)
        options.set_writable_file_max_buffer_size(_FILE_BUFFER_BYTES)
        options.set_keep_log_file_num(1)
        options.set_max_manifest_file_size(1 << 20)
        options.set_stats_dump_period_sec(0)
        self._merge_little(options)
        self._separate_values(options)
        return options

    def _merge_little(self, options: Any) -> None:
        """Small tables in levels that are not much larger than each other: a merge takes a small part of all."""
        options.set_num_levels(_LEVELS)
        options.set_level_zero_file_num_compaction_trigger(_FLUSHES)
        table_bytes = max(self._unit_bytes // 32, _TABLE_BYTES_MIN)
        options.set_max_bytes_for_level_base(4 * table_bytes)
        options.set_max_bytes_for_level_multiplier(_LEVEL_FACTOR)
        options.set_target_file_size_base(table_bytes)
        options.set_target_file_size_multiplier(2)

    def _separate_values(self, options: Any) -> None:
        options.set_enable_blob_files(True)
        options.set_min_blob_size(_BLOB_BYTES_MIN)
        options.set_blob_file_size(2 * self._unit_bytes)
        options.set_blob_compression_type(self._rocksdict.DBCompressionType.lz4())
        options.set_enable_blob_gc(True)
        options.set_blob_gc_age_cutoff(0.0)  # until ``MergePlan`` says so
        options.set_blob_gc_force_threshold(_GARBAGE_SHARE)

    def value_places(self) -> ValuePlaces:
        return ValuePlaces(self._unit_bytes)


@final
class MergePlan:
    """Decides whether old files of values are given up: only where there is garbage. A state that has just been filled
    has none, and moving its oldest values would only be more to write for the checkpoints behind.
    """

    #: Changing one's mind makes RocksDB write its options and sync them, while the task waits for 10 to 20 ms: seldom.
    _GARBAGE_MUCH: Final = 0.1
    _GARBAGE_LITTLE: Final = 0.03

    def __init__(self) -> None:
        self._gives_up = False

    def note(self, values_bytes: int, garbage_bytes: int) -> dict[str, str]:
        """So much is in files of values, so much of it is no longer needed. Return options to set now."""
        limit = self._GARBAGE_LITTLE if self._gives_up else self._GARBAGE_MUCH
        gives_up = garbage_bytes > limit * values_bytes
        if gives_up == self._gives_up:
            return {}
        self._gives_up = gives_up
        return {"blob_garbage_collection_age_cutoff": str(_OLD_SHARE if gives_up else 0.0)}


@final
class ValuePlaces:
    """Decides where a flush puts large values: in a file of values at once, or, when checkpoints come with little in
    them, beside the keys until they get into the last level. Else each checkpoint would leave a tiny file for good.
    """

    #: Fewer bytes a checkpoint than that are little, whatever there is in all.
    _LITTLE_BYTES: Final = 256 << 10
    #: Files of values that there may be of one age.
    _FILES: Final = 256
    #: Changing one's mind makes RocksDB write its options and sync them, while the task waits for 10 to 20 ms.
    _HYSTERESIS: Final = 4
    _LITTLE_IN_A_ROW: Final = 3

    def __init__(self, unit_bytes: int) -> None:
        self._enough_bytes = unit_bytes // 2
        self._level = 0
        self._times_little = 0

    def note(self, written_bytes: int, total_bytes: int) -> dict[str, str]:
        """So much was written since the checkpoint before; there is so much in all. Return options to set now."""
        enough = min(self._enough_bytes, max(self._LITTLE_BYTES, total_bytes // self._FILES))
        if written_bytes >= enough:
            self._times_little, level = 0, 0
        elif written_bytes >= enough // self._HYSTERESIS:
            self._times_little, level = 0, self._level
        else:
            self._times_little += 1
            level = _LEVELS - 1 if self._times_little >= self._LITTLE_IN_A_ROW else self._level
        if level == self._level:
            return {}
        self._level = level
        return {"blob_file_starting_level": str(level)}


def _share_arenas() -> None:
    """What RocksDB's threads free shall serve the others. With a heap for each of them a task took 5 MB more."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
