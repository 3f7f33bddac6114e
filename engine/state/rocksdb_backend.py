"""Keyed state in RocksDB on a local disk: more state than memory, checkpoints by hard links. The states themselves:
``rocksdb_states``; hot rows: ``rocksdb_cache``; why it is laid out so: docs/decisions/0011-rocksdb.md.

A row's key: key group (2 bytes) | length and name of the state | key | namespace [| number of a run | key of a map].
Rows with a name of length 0 are timers (``rocksdb_timers``). Key group 0xFFFF has what belongs to no key: the list of
states, values of rare key types, classes.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, final

from engine.core.clock import Clock
from engine.core.errors import ConfigError, ProgramError
from engine.core.user_code import describe_record
from engine.state.backend import VOID
from engine.state.chunks import StateChunk, dump_chunk, dump_keyed, load_chunk, load_keyed
from engine.state.declared_types import check_restored, check_same_type, holding_class
from engine.state.descriptors import StateDescriptor
from engine.state.heap_backend import snapshot_ttl
from engine.state.heap_states import MISSING, Places
from engine.state.key_groups import canonical_key, key_group_of
from engine.state.key_types import KeyTypes
from engine.state.keyed_backend import KeyedBackend, check_kind
from engine.state.rocksdb_cache import RowCache
from engine.state.rocksdb_files import FrozenFiles, is_lasting
from engine.state.rocksdb_keys import KeyCodec
from engine.state.rocksdb_options import MergePlan, RocksSetup
from engine.state.rocksdb_states import OTHERS, ROCKS_STATES, ROCKS_TTL_STATES, ListCell, RocksTable
from engine.state.rocksdb_values import ValueCodec
from engine.state.ttl import stamped, unexpired, unstamped

__all__ = ["RocksDBKeyedStateBackend", "walk"]

_GROUP: Final = struct.Struct(">H")
_SEQUENCE: Final = struct.Struct(">Q")
_NO_GROUP: Final = b"\xff\xff"
_META_ROW: Final = _NO_GROUP + b"m"
_RARE_ROWS: Final = _NO_GROUP + b"k"
_CLASS_ROWS: Final = _NO_GROUP + b"c"
_OTHERS_SUFFIX: Final = b"\xff"
#: Behind the key group: what comes before belongs to no state.
_FIRST_STATE: Final = b"\x01"
#: RocksDB does not work well with less.
_MEMORY_MIN: Final = 8 << 20
_BATCH_ROWS: Final = 1000
#: What a row in a write buffer takes besides itself, at most.
_NODE_BYTES: Final = 64
#: What an encoded key that is remembered takes besides its bytes and those of the key.
_ENCODED_BYTES: Final = 250


@final
class RocksDBKeyedStateBackend(KeyedBackend):
    """Implements ``backend.KeyedStateBackend``; as a part of state it is a ``FilePart``.

    ``folder``: its own, need not exist. ``session``: names files in checkpoints, so that no two subtasks and attempts
    ever use one name for different contents. ``memory_bytes``: half for RocksDB's caches and write buffers, a quarter
    for rows as objects, a sixteenth for encoded keys; the rest is slack, since objects are only estimated.
    """

    format = "rocksdb"

    def __init__(
        self,
        clock: Clock,
        max_parallelism: int,
        *,
        folder: str,
        memory_bytes: int,
        session: str,
        owner: str = "Keyed state",
        key_types: KeyTypes | None = None,
        is_own: bool = False,
    ) -> None:
        super().__init__(owner, key_types, is_own=is_own)
        self._clock = clock
        self._max_parallelism = max_parallelism
        self._folder = folder
        self._memory_bytes = self.memory_bytes = max(_MEMORY_MIN, memory_bytes)
        self._session = session
        self._tables: dict[str, RocksTable] = {}
        self._cache = RowCache(self._memory_bytes // 4, self._load, self._write, self._is_in_use)
        self._keys = self.key_codec = KeyCodec(self._store_rare, self._load_rare)
        self._values = self.value_codec = ValueCodec(self._store_class, self._load_class, owner)
        #: key → (key group, bytes)
        self._encoded: dict[Any, tuple[int, bytes]] = {}
        self._encoded_bytes = 0
        self._sequence = 0
        #: file of RocksDB → its name in checkpoints, of files that a former attempt wrote
        self._inherited: dict[str, str] = {}
        #: an iterator, which sees what it saw when it was made: iterators of rocksdict's own snapshots do not
        self._frozen: tuple[Any, dict[str, RocksTable]] | None = None
        #: files that are being laid down, and how many bytes of rows may be written until they are
        self._freezing: FrozenFiles | None = None
        self._bytes_left = 0
        #: since the last freeze
        self._written_bytes = 0
        self._db: Any = None
        self._restored_groups: set[int] = set()
        #: of those that keep rows of their own here: write what waits, before the rows are frozen
        self.before_freeze: list[Callable[[], None]] = []
        os.makedirs(os.path.dirname(folder) or ".", exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        self._open()

    # --- the database ----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            import rocksdict
        except ImportError as error:
            raise ConfigError(
                "state.backend.type is rocksdb, and the package rocksdict is not installed where the TaskManagers run: "
                f"{error}. Install it there (pip install rocksdict), or use hashmap."
            ) from error
        self._rocksdict = rocksdict
        self._write_options = rocksdict.WriteOptions()
        # Checkpoints are what survives; a log of our own would only double the writes.
        self._write_options.disable_wal = True  # type: ignore[method-assign,assignment]
        self._setup = RocksSetup(rocksdict, self._memory_bytes // 2)
        self._value_places = self._setup.value_places()
        self._merge_plan = MergePlan()
        self._unseen_bytes = 0
        self._db = rocksdict.Rdict(self._folder, self._setup.options())

    def close(self) -> None:
        self.clear_current_key()
        self._frozen = None
        self.before_freeze.clear()
        if self._freezing is not None:
            self._freezing.abandon()
            self._freezing = None
        if self._db is not None:
            self._db.close()
            self._db = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def _put_all(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write rows; None deletes."""
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        for key, value in rows:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
            if len(batch) >= _BATCH_ROWS:
                self._write_batch(batch)
                batch = self._rocksdict.WriteBatch(raw_mode=True)
        if len(batch):
            self._write_batch(batch)

    def _write_batch(self, batch: Any) -> None:
        size_bytes = batch.size_in_bytes()
        self._written_bytes += size_bytes
        self._unseen_bytes += size_bytes
        if self._freezing is not None:
            self._bytes_left -= size_bytes + _NODE_BYTES * len(batch)
            if self._freezing.is_done or self._bytes_left < 0:
                self._freezing.settle()
                self._freezing = None
        elif self._unseen_bytes >= self._setup.write_buffer_bytes:
            self._plan_merges()
        self._db.write(batch, self._write_options)

    def _plan_merges(self) -> None:
        """Called now and then between checkpoints: it may wait for a sync, which a barrier shall not."""
        self._unseen_bytes = 0
        sizes = (self._db.property_int_value(f"rocksdb.live-blob-file-{kind}") for kind in ("size", "garbage-size"))
        if changed := self._merge_plan.note(*(int(size or 0) for size in sizes)):
            self._db.set_options(changed)

    def _scan(self, prefix: bytes, source: Any = None) -> Iterator[tuple[bytes, bytes]]:
        for key, value in (source or self._db).items(from_key=prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def _store_rare(self, digest: bytes, value: Any) -> None:
        self._put_all([(_RARE_ROWS + digest, dump_chunk(value, f"{self._owner}: a key"))])

    def _load_rare(self, digest: bytes) -> Any:
        return load_chunk(self._db.get(_RARE_ROWS + digest), f"{self._owner}: a key")

    def _store_class(self, name: str, data: bytes) -> None:
        self._put_all([(_CLASS_ROWS + name.encode(), data)])

    def _load_class(self, name: str) -> bytes:
        data: bytes = self._db.get(_CLASS_ROWS + name.encode())
        return data

    # --- rows of others --------------------------------------------------------------------------------------------

    def frozen_rows(self) -> Any:
        """Return an iterator over the rows as of now, for ``walk`` in any one thread."""
        return self._db.iter()

    def rows_between(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows from ``start`` on that come before ``end``: deleted rows behind it are not looked at."""
        options = self._rocksdict.ReadOptions()
        options.set_iterate_upper_bound(end)
        # The iterator does not keep the options alive, and looks at the end that lies in them.
        yield from self._db.items(from_key=start, read_opt=options)

    def write_rows(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write rows whose name has length 0; None deletes."""
        self._put_all(rows)

    def delete_rows(self, start: bytes, end: bytes) -> None:
        """Delete the rows from ``start`` on that come before ``end``. Each such call makes later reads slower."""
        self._db.delete_range(start, end, self._write_options)

    # --- states ----------------------------------------------------------------------------------------------------

    def _make(self, descriptor: StateDescriptor) -> Any:
        table = self._table_of(descriptor)
        if descriptor.ttl_config is None:
            return holding_class(ROCKS_STATES[descriptor.kind], descriptor)(self, table, descriptor)
        return holding_class(ROCKS_TTL_STATES[descriptor.kind], descriptor)(self, table, descriptor, self._clock)

    def _new_table(self, name: str, kind: str, has_ttl: bool) -> RocksTable:
        if len(name.encode()) > 255:
            raise ProgramError(f"The name of state {name[:40]!r}… is longer than 255 bytes.")
        table = RocksTable(
            kind, has_ttl, changed=Places(), name=name, name_bytes=_name_bytes(name), cache=self._cache, store=self
        )
        self._tables[name] = table
        return table

    def _table_of(self, descriptor: StateDescriptor) -> RocksTable:
        has_ttl = descriptor.ttl_config is not None
        table = self._tables.get(descriptor.name)
        if table is None:
            table = self._new_table(descriptor.name, descriptor.kind, has_ttl)
        check_kind(table, descriptor, self._owner)
        check_same_type(table.descriptor, descriptor)
        if table.descriptor is None and descriptor.type_info is not None and not self._is_own:
            check_restored(self._owner, descriptor, self._some_restored(table))
        if table.has_ttl != has_ttl:
            if table.descriptor is not None:
                raise ProgramError(
                    f"State {descriptor.name!r} is used with and without a time to live: use one descriptor for it."
                )
            self._adopt(table, has_ttl)
        table.descriptor = descriptor
        return table

    def _some_restored(self, table: RocksTable) -> list[Any]:
        """Return one cell of a state that was restored, or what is in one of its rows."""
        for group in range(self._max_parallelism):
            for _, data in self._scan(_GROUP.pack(group) + table.name_bytes):
                value = self._values.loads(data, table.name)
                if table.has_ttl:
                    return [unstamped(table.kind, value)]
                return [dict((value,)) if table.kind == "map" and isinstance(value, tuple) else value]
        return []

    def _adopt(self, table: RocksTable, has_ttl: bool) -> None:
        """The program now says whether a restored state expires: write it again in that form."""
        now_ms = self._clock.now_ms()
        for group in range(self._max_parallelism):
            chunk = self._chunks_of(group, self._db.iter(), {table.name: table}).get(table.name)
            if chunk is None:
                continue
            prefix = _GROUP.pack(group) + table.name_bytes
            self._put_all((key, None) for key, _ in list(self._scan(prefix)))
            table.has_ttl = has_ttl
            for entry in chunk.entries:
                entry[2][:] = [
                    stamped(table.kind, cell, now_ms) if has_ttl else unstamped(table.kind, cell) for cell in entry[2]
                ]
            self._put_all(self._rows_of_chunk(table, chunk))
            table.has_ttl = not has_ttl
        table.has_ttl = has_ttl

    def keys(self, state_name: str, namespace: Any = VOID) -> Iterator[Any]:
        table = self._tables.get(state_name)
        found: dict[Any, None] = {}
        if table is not None:
            self._cache.write_out()
            wanted = self._keys.encode(namespace)
            for group in range(self._max_parallelism):
                prefix = _GROUP.pack(group) + table.name_bytes
                for row, _ in self._scan(prefix):
                    key, end = self._keys.decode(row, len(prefix))
                    if row.startswith(wanted, end):
                        found[canonical_key(key)] = None
        return iter(found)

    # --- rows ------------------------------------------------------------------------------------------------------

    def encoded(self, key: Any) -> tuple[int, bytes]:
        """Return the key group and the bytes of a key."""
        known = self._encoded.get(key)
        if known is None:
            known = key_group_of(key, self._max_parallelism), self._keys.encode(key)
            self._encoded_bytes += 2 * len(known[1]) + _ENCODED_BYTES
            if self._encoded_bytes > self._memory_bytes // 16:
                self._encoded.clear()
                self._encoded_bytes = 0
            self._encoded[key] = known
        return known

    def _prefix(self, table: RocksTable, namespace: Any, key: Any) -> bytes:
        group, encoded = self.encoded(key)
        void_or_window = b"n" if namespace is VOID else self._keys.encode(namespace)
        return b"".join((_GROUP.pack(group), table.name_bytes, encoded, void_or_window))

    def can_encode(self, value: Any) -> bool:
        try:
            self._keys.encode(value)
        except ProgramError:
            return False
        return True

    def _is_in_use(self, row: Any) -> bool:
        key = self.key_or_none
        return row[2] is key or bool(row[2] == key)

    def _load(self, row: Any) -> Any:
        table, namespace, key = row[:3]
        if table.kind == "list" and not table.has_ttl:
            return ListCell(None, [])
        prefix = self._prefix(table, namespace, key)
        if len(row) == 4:
            prefix += _OTHERS_SUFFIX if row[3] is OTHERS else self._keys.encode(row[3])
        data = self._db.get(prefix)
        if data is None:
            return MISSING
        self._cache.note_size(len(data))
        value = self._values.loads(data, table.name)
        return value[1] if len(row) == 4 and row[3] is not OTHERS else value

    def _write(self, rows: Iterable[tuple[Any, Any]]) -> None:
        num_rows = 0
        out: list[tuple[bytes, bytes | None]] = []
        for row, value in rows:
            num_rows += 1
            self._rows_to_write(row, value, out)
        self._put_all(out)
        self._clean_up(num_rows)

    def write_row(self, row: Any, value: Any) -> None:
        out: list[tuple[bytes, bytes | None]] = []
        self._rows_to_write(row, value, out)
        self._put_all(out)

    def _rows_to_write(self, row: Any, value: Any, out: list[tuple[bytes, bytes | None]]) -> None:
        table, namespace, key = row[:3]
        prefix = self._prefix(table, namespace, key)
        if isinstance(value, ListCell):
            if value.is_replaced:
                out += [(stored, None) for stored, _ in self._scan(prefix)]
                value.is_replaced = False
            if value.pending:
                out.append((prefix + self._next_number(), self._dumps(row, value.pending)))
                value.pending = []
            return
        if len(row) == 4:
            prefix += _OTHERS_SUFFIX if row[3] is OTHERS else self._keys.encode(row[3])
            if value is not MISSING and row[3] is not OTHERS:
                value = (row[3], value)
        out.append((prefix, None if value is MISSING else self._dumps(row, value)))

    def _next_number(self) -> bytes:
        self._sequence += 1
        return _SEQUENCE.pack(self._sequence)

    def _dumps(self, row: Any, value: Any) -> bytes:
        try:
            return self._values.dumps(value)
        except Exception as error:
            table, namespace, key = row[:3]
            where = f"key {describe_record(key)}" + ("" if namespace is VOID else f" in {namespace!r}")
            raise ProgramError(
                f"{self._owner}: state {table.name!r}, {where}: the value {describe_record(value)} cannot be pickled "
                f"({type(error).__name__}: {error}), so it cannot be kept in RocksDB. Keep plain values in state, or "
                "objects that consist of them; connections, locks and generators belong into open()."
            ) from error

    def list_rows(self, row: Any) -> tuple[list[Any], int]:
        elements: list[Any] = []
        num_rows = size = 0
        for _, data in self._scan(self._prefix(*row)):
            num_rows += 1
            size += len(data)
            elements += self._values.loads(data, row[0].name)
        self._cache.note_size(size)
        return elements, num_rows

    def map_entries(self, row: Any) -> list[tuple[Any, Any]]:
        self._cache.write_out()
        prefix = self._prefix(*row)
        entries: list[tuple[Any, Any]] = []
        for stored, data in self._scan(prefix):
            value = self._values.loads(data, row[0].name)
            if stored.endswith(_OTHERS_SUFFIX) and len(stored) == len(prefix) + 1:
                entries += value.items()
            else:
                entries.append(value)
        return entries

    def _clean_up(self, num_rows: int) -> None:
        """Look at some rows of each expiring state, going round, and remove those that have expired."""
        for table in self._tables.values():
            config = None if table.descriptor is None else table.descriptor.ttl_config
            cleanup = None if config is None else config.cleanup_strategies.get_incremental_cleanup_strategy()
            if config is None or cleanup is None:
                continue
            now_ms = self._clock.now_ms()
            left = num_rows * cleanup.cleanup_size
            gone: list[tuple[bytes, bytes | None]] = []
            position = table.cursor
            name = table.name_bytes
            for row, data in self._db.items(from_key=position):
                if left <= 0 or row.startswith(_NO_GROUP):
                    break
                position = row + b"\x00"
                left -= 1
                if row.startswith(name, 2):
                    cell = self._values.loads(data, table.name)
                    if unexpired(table.kind, cell, config, now_ms) is MISSING:
                        gone.append((row, None))
            else:
                left = 1
            table.cursor = b"" if left > 0 else position
            self._put_all(gone)

    # --- chunks ----------------------------------------------------------------------------------------------------

    def num_entries(self) -> int:
        if all(row.startswith(_NO_GROUP) for row, _ in itertools.islice(self._db.items(), 1)):
            return len(self._cache)  # but for what describes the file itself: nobody has kept anything
        return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0) + len(self._cache)

    def _chunks_of(self, group: int, rows: Any, tables: Mapping[str, RocksTable]) -> dict[str, StateChunk]:
        """Return what is stored of a key group, as cells of ``heap_backend``; all that is changed must be written.
        ``rows``: an iterator of RocksDB's."""
        #: state → namespace → key → cell
        states: dict[str, dict[Any, dict[Any, Any]]] = {}
        prefix = _GROUP.pack(group)
        for row, data in walk(rows, prefix, prefix + _FIRST_STATE):
            start = 3 + row[2]
            name = row[3:start].decode()
            table = tables.get(name)
            if table is None:
                continue
            key, end = self._keys.decode(row, start)
            namespace, end = self._keys.decode(row, end)
            cells = states.setdefault(name, {}).setdefault(namespace, {})
            value = self._values.loads(data, name)
            if table.has_ttl or table.kind not in ("list", "map"):
                cells[key] = value
            elif table.kind == "list":
                cells.setdefault(key, []).extend(value)
            elif row[end:] == _OTHERS_SUFFIX:
                cells.setdefault(key, {}).update(value)
            else:
                cells.setdefault(key, {})[value[0]] = value[1]
        return {
            name: StateChunk(
                tables[name].kind,
                tables[name].has_ttl,
                [(namespace, list(cells), list(cells.values())) for namespace, cells in spaces.items()],
            )
            for name, spaces in states.items()
        }

    def snapshot(self, key_groups: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield chunks of the state as of ``freeze_rows``, or as of now when it was not called since the last time."""
        if self._frozen is None:
            self.freeze_rows()
        assert self._frozen is not None
        # It must not be kept: nothing that it sees can be given up by RocksDB.
        (rows, tables), self._frozen = self._frozen, None
        for group in key_groups:
            states = self._chunks_of(group, rows, tables)
            for name, chunk in list(states.items()):
                self._leave_out_expired(tables[name], chunk)
                if not chunk.entries:
                    del states[name]
            if states:
                yield group, dump_keyed(states, self._owner)

    def _leave_out_expired(self, table: RocksTable, chunk: StateChunk) -> None:
        config = snapshot_ttl(table)
        if config is None:
            return
        now_ms = self._clock.now_ms()
        kept = []
        for namespace, keys, cells in chunk.entries:
            found = [(key, unexpired(table.kind, cell, config, now_ms)) for key, cell in zip(keys, cells, strict=True)]
            living = [(key, cell) for key, cell in found if cell is not MISSING]
            if living:
                kept.append((namespace, [key for key, _ in living], [cell for _, cell in living]))
        chunk.entries = kept

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, data in chunks.items():
            is_first = group not in self._restored_groups
            self._restored_groups.add(group)
            for name, chunk in load_keyed(data, self._owner).items():
                table = self._tables.get(name) or self._new_table(name, chunk.kind, chunk.has_ttl)
                if not is_first:
                    places = [(ns, keys) for ns, keys, _ in chunk.entries] + chunk.removed
                    self._put_all(
                        (row, None)
                        for namespace, keys in places
                        for key in keys
                        for row, _ in list(self._scan(self._prefix(table, namespace, canonical_key(key))))
                    )
                self._put_all(self._rows_of_chunk(table, chunk))
        self._frozen = None

    def _rows_of_chunk(self, table: RocksTable, chunk: StateChunk) -> Iterator[tuple[bytes, bytes | None]]:
        is_plain = table.has_ttl or table.kind not in ("list", "map")
        for namespace, keys, cells in chunk.entries:
            self._key_types.note(keys)
            for key, cell in zip(keys, cells, strict=True):
                key = canonical_key(key)
                row = (table, namespace, key)
                out: list[tuple[bytes, bytes | None]] = []
                if is_plain:
                    self._rows_to_write(row, cell, out)
                elif table.kind == "list":
                    self._rows_to_write(row, ListCell(None, cell), out)
                else:
                    others = {}
                    for map_key, value in cell.items():
                        if self.can_encode(map_key):
                            self._rows_to_write((*row, map_key), value, out)
                        else:
                            others[map_key] = value
                    if others:
                        self._rows_to_write((*row, OTHERS), others, out)
                yield from out

    # --- files -----------------------------------------------------------------------------------------------------

    def _freeze_rows(self) -> None:
        for write_out in self.before_freeze:
            write_out()
        self._cache.write_out()
        kinds = {name: (table.kind, table.has_ttl) for name, table in self._tables.items()}
        self._put_all([(_META_ROW, pickle.dumps((kinds, self._sequence), 5))])

    def freeze(self, folder: str) -> FrozenFiles:
        if self._freezing is not None:
            self._freezing.settle()
        self._frozen = None  # of a savepoint that was given up
        self._freeze_rows()
        if changed := self._value_places.note(self._written_bytes, self._stored_bytes()):
            self._db.set_options(changed)
        self._written_bytes = 0
        self._db.flush(False)
        # The next flush comes when a write buffer is full; so much is far from that.
        self._bytes_left = self._setup.write_buffer_bytes // 2
        self._freezing = FrozenFiles(self._db, self._folder, folder, self._lasting_name)
        return self._freezing

    def _stored_bytes(self) -> int:
        kinds = ("rocksdb.total-sst-files-size", "rocksdb.total-blob-file-size")
        return sum(int(self._db.property_int_value(kind) or 0) for kind in kinds)

    def freeze_rows(self) -> None:
        if self._freezing is not None:
            self._freezing.settle()
        self._freeze_rows()
        self._frozen = (self._db.iter(), dict(self._tables))

    def _lasting_name(self, name: str) -> str:
        """Return a file's name in checkpoints: RocksDB numbers its files anew in each attempt."""
        return self._inherited.get(name) or f"{self._session}-{name}"

    def is_mutable(self, file_name: str) -> bool:
        return not is_lasting(file_name)

    def restore_files(self, folder: str, key_groups: range) -> None:
        names = {name.rpartition("-")[2]: name for name in os.listdir(folder) if is_lasting(name)}
        for short, name in names.items():
            os.rename(os.path.join(folder, name), os.path.join(folder, short))
        if self._sequence == 0 and not self._tables and not self._restored_groups:
            self._take_over(folder, names, key_groups)
        else:
            self._copy_from(folder, key_groups)
        self._restored_groups.update(key_groups)
        self._frozen = None

    def _take_over(self, folder: str, names: dict[str, str], key_groups: range) -> None:
        """Go on in the former subtask's files; what is not ours is cut off."""
        self._db.close()
        shutil.rmtree(self._folder)
        shutil.move(folder, self._folder)
        self._open()
        self._inherited = names
        self._read_meta(self._db)
        for start, end in ((0, key_groups.start), (key_groups.stop, self._max_parallelism)):
            if start < end:
                self._db.delete_range(_GROUP.pack(start), _GROUP.pack(end), self._write_options)
        self._note_key_types(key_groups)

    def _copy_from(self, folder: str, key_groups: range) -> None:
        other = self._rocksdict.Rdict(folder, self._setup.options())
        try:
            self._read_meta(other)
            for prefix in [*map(_GROUP.pack, key_groups), _RARE_ROWS, _CLASS_ROWS]:
                self._put_all(self._scan(prefix, other))
        finally:
            other.close()
            shutil.rmtree(folder, ignore_errors=True)
        self._note_key_types(key_groups)

    def _read_meta(self, source: Any) -> None:
        data = source.get(_META_ROW)
        if data is None:
            raise ProgramError(f"{self._owner}: the files of its state are not whole: the list of states is missing.")
        kinds, sequence = pickle.loads(data)
        self._sequence = max(self._sequence, sequence)
        for name, (kind, has_ttl) in kinds.items():
            if name not in self._tables:
                self._new_table(name, kind, has_ttl)

    def _note_key_types(self, key_groups: range) -> None:
        """Look at one key of each group: enough to notice that keys are of another type now."""
        for group in key_groups:
            prefix = _GROUP.pack(group)
            row = next((row for row, _ in walk(self._db.iter(), prefix, prefix + _FIRST_STATE)), None)
            if row is not None:
                self._key_types.note([self._keys.decode(row, 3 + row[2])[0]])


def walk(rows: Any, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows whose keys begin with a prefix, from ``start`` on. ``rows``: an iterator of RocksDB's."""
    rows.seek(start or prefix)
    while rows.valid():
        key = rows.key()
        if not key.startswith(prefix):
            return
        yield key, rows.value()
        rows.next()
    rows.status()  # raises when it was an error that ended it


def _name_bytes(name: str) -> bytes:
    encoded = name.encode()
    return bytes((len(encoded),)) + encoded
