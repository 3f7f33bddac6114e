"""Packs the engine and the Python packages that it needs into two archives for YARN's nodes.

One has the packages, which are large and change rarely, one the engine itself. They are named by their content, kept
in the user's cache folder and on HDFS, and cached by NodeManagers: a second deployment packs and uploads nothing. Their
roots belong on ``PYTHONPATH``. Not here: users' files (``session_client``).
"""

from __future__ import annotations

import concurrent.futures
import configparser
import contextlib
import getpass
import hashlib
import importlib.metadata
import io
import os
import queue
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from engine.core.errors import ConfigError, EngineError, ExternalError
from engine.core.fs import FileSystem
from flink_yarn.parallel_zip import ParallelZipWriter

__all__ = [
    "ArchiveEntry",
    "content_hash",
    "engine_entries",
    "mark_used",
    "package_entries",
    "remove_unused",
    "requirement_closure",
    "ship_archives",
]

#: Changes whenever the same inputs would give another archive.
_FORMAT: Final = "5"
#: What runs on a node needs none of these.
_LEFT_OUT: Final = re.compile(
    r"(^|/)(tests?|__pycache__|include|examples?)/"
    r"|\.(h|hpp|hh|pxd|pyx|pxi|pyi|a|c|cc|cpp|cu|pc|cmake|md|rst)$"
    r"|^pyarrow/(src/|.*(flight|gandiva|_tests?\.|libarrow_python\.so\.\d+\.|encryption\.so\.\d+\.))"
    r"|^numba/cuda/"
    r"|^pyarrow/libarrow_python\.so$"  # a copy of the one with a version, for linkers
    r"|^skein/java/"  # YARN gets skein's jar from skein
    r"|^(pip|setuptools|pkg_resources|wheel)/"
    r"|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|licenses/|LICENSE|sboms/)"
)
#: Taken back from the above: imported at run time in spite of their name.
_KEPT: Final = re.compile(r"^(numpy/(testing|_core/tests/_natype)|numba/(testing|tests/__init__)|numba/cuda/).*\.py$")

#: PEP 552: never compared with the source, whose times change when a NodeManager unpacks it.
_UNCHECKED_HASH: Final = 0b01
#: numba's cache: an index of each kernel, and machine code by types.
_KERNEL_FILES: Final = (".nbi", ".nbc")
#: What only clients need: skein makes its driver's certificates with it.
_CLIENT_ONLY: Final = frozenset({"cryptography", "cffi", "pycparser"})
#: Packages of extras that are shipped when they are there.
_OPTIONAL: Final = ("hdfs-native",)
_KEPT_ARCHIVES: Final = 3
#: Between packing and uploading: the slower one holds up the other beyond this.
_PIECE_BYTES: Final = 1 << 20
_PIECES_MAX: Final = 64
_UPLOADING: Final = ".uploading-"
_BROKEN_AFTER_MS: Final = 86_400_000  # no upload lasts a day
_ARCHIVE: Final = re.compile(r"(engine|packages)-[0-9a-f]{32}\.zip")
_MARKER: Final = ".used"
_MARKED_EVERY_MS: Final = 86_400_000
#: In the queue instead of a piece: nothing follows, and what came is not all. Told by identity.
_CUT: Final = bytes(bytearray(b"cut"))


@dataclass(frozen=True)
class ArchiveEntry:
    """One file: its name in the archive and where it is here."""

    name: str
    path: Path
    #: changes when the content does: a hash of the file, or what its distribution says of it; "" if it may be anything
    stamp: str


# --- what goes in ---------------------------------------------------------------------------------------------------


def requirement_closure(names: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """Return the installed distributions that these names need, themselves included, sorted by name.

    Requirements of extras and those that are not installed (meant for other platforms) are left out.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    pending = list(names)
    while pending:
        name = _normalised(pending.pop())
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution
        for requirement in distribution.requires or ():
            plain, _, marker = requirement.partition(";")
            if "extra" not in marker:
                pending.append(_required_name(plain))
    return [found[name] for name in sorted(found)]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _required_name(requirement: str) -> str:
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return match[1] if match else ""


def _engine_home() -> Path:
    import engine

    return Path(engine.__file__).resolve().parent.parent


def _own_requirements() -> list[str]:
    """Return what the engine's distribution requires; what its setup.cfg says when it is not installed as one."""
    requires: list[str] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        requires = [r for r in importlib.metadata.requires("engine") or () if "extra" not in r.partition(";")[2]]
    if not requires:
        path = _engine_home() / "setup.cfg"
        parser = configparser.ConfigParser()
        if not parser.read(path):
            raise ConfigError(
                f"The engine is neither installed (pip install) nor run from its source folder: {path} is missing. "
                "Its requirements are needed to pack it for YARN."
            )
        requires = parser.get("options", "install_requires", fallback="").split("\n")
    return [name for name in map(_required_name, requires) if name]


def engine_entries() -> list[ArchiveEntry]:
    """Return the files of ``engine`` and ``flink_yarn``, sorted by name, with the kernels that have been compiled.

    These are not in the archive's name: jobs here may add some at any time, and what is missing on a node, or is for
    another processor, is compiled there.
    """
    home = _engine_home()
    entries = []
    for package in ("engine", "flink_yarn"):
        for path in (home / package).rglob("*"):
            name = path.relative_to(home).as_posix()
            if path.suffix in _KERNEL_FILES:
                if _is_current_kernel(path):
                    entries.append(ArchiveEntry(name, path, ""))
            elif path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                entries.append(ArchiveEntry(name, path, hashlib.sha256(path.read_bytes()).hexdigest()))
    return sorted(entries, key=lambda entry: entry.name)


def _is_current_kernel(path: Path) -> bool:
    """Whether this Python has written it, and after the source was: ``MODULE.FUNCTION-LINE.pyXY.nbi`` or ``.N.nbc``."""
    source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
    with contextlib.suppress(OSError):
        is_ours = f".py{sys.version_info[0]}{sys.version_info[1]}" in path.name
        return is_ours and path.stat().st_mtime >= source.stat().st_mtime
    return False


def package_entries() -> list[ArchiveEntry]:
    """Return the files of everything that the engine needs besides Python itself, sorted by name."""
    entries: dict[str, ArchiveEntry] = {}
    names = [*_own_requirements(), *_OPTIONAL]
    if sys.version_info >= (3, 12):
        names.append("setuptools")  # skein asks for distutils, which Python has no more
    for distribution in requirement_closure(names):
        if _normalised(distribution.metadata["Name"]) not in {"engine", *_CLIENT_ONLY}:
            for entry in _distribution_entries(distribution):
                entries.setdefault(entry.name, entry)
    return [entries[name] for name in sorted(entries)]


def _distribution_entries(distribution: importlib.metadata.Distribution) -> Iterator[ArchiveEntry]:
    keep_setuptools = sys.version_info >= (3, 12)
    for file in distribution.files or ():
        name = file.as_posix()
        if name.startswith(("..", "/")) or name.endswith((".pyc", ".pth")):
            continue
        is_distutils = (
            keep_setuptools and name.startswith(("setuptools/", "_distutils_hack/")) and "/tests/" not in name
        )
        if _LEFT_OUT.search(name) and not _KEPT.match(name) and not is_distutils:
            continue
        path = Path(str(distribution.locate_file(file)))
        if not path.is_file():
            continue
        stamp = f"{file.hash.mode}={file.hash.value}" if file.hash else hashlib.sha256(path.read_bytes()).hexdigest()
        yield ArchiveEntry(name, path, stamp)


def content_hash(entries: Iterable[ArchiveEntry]) -> str:
    """Return the name that the archive of these entries gets: equal content, equal Python, equal name."""
    digest = hashlib.sha256(f"{_FORMAT} {sys.implementation.cache_tag} {sys.platform}\n".encode())
    unstamped = False
    for entry in entries:
        if entry.stamp:
            digest.update(f"{entry.name} {entry.stamp}\n".encode())
        else:
            unstamped = True
    if unstamped:
        digest.update(b"and compiled kernels\n")
    return digest.hexdigest()[:32]


# --- packing --------------------------------------------------------------------------------------------------------


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "engine" / "archives"


def ship_archives(fs: FileSystem, folder: str, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the paths of both archives in ``folder`` of ``fs``, the engine's first, once they are there.

    What the folder does not have comes from the user's cache folder, and what that does not have either is packed,
    into both at once. The newest of each kind stay in the cache folder, older ones are removed.
    """
    return [
        _ship("engine", engine_entries(), fs, folder, lambda line: None),
        _ship("packages", package_entries(), fs, folder, say),
    ]


def _ship(kind: str, entries: list[ArchiveEntry], fs: FileSystem, folder: str, say: Callable[[str], None]) -> str:
    name = f"{kind}-{content_hash(entries)}.zip"
    target = f"{folder.rstrip('/')}/{name}"
    there = fs.status(target)
    local = _cache_folder() / name
    if local.is_file():
        with contextlib.suppress(OSError):
            os.utime(local)
        if there is None or there.size_bytes != local.stat().st_size:
            say(f"Uploading {kind} ({local.stat().st_size / (1 << 20):.1f} MB) to {folder}; this is done once.")
            with open(local, "rb") as source:
                _upload(iter(lambda: source.read(_PIECE_BYTES), b""), fs, target)
        return target
    if there is not None:
        return target  # from another host or user: what is named by its content is always complete
    say(f"Packing the engine's Python packages for YARN's nodes and uploading them to {folder}; this is done once.")
    pieces: queue.Queue[bytes] = queue.Queue(_PIECES_MAX)
    with concurrent.futures.ThreadPoolExecutor(1) as worker:
        uploading = worker.submit(_upload_queued, pieces, fs, target)
        try:
            _pack_cached(kind, entries, local, pieces)
        except BaseException:
            pieces.put(_CUT)
            raise
        pieces.put(b"")
        uploading.result()
    return target


def mark_used(fs: FileSystem, archive: str, now_ms: int) -> None:
    """Note beside an archive that it is in use, once a day.

    Not its own modification time: YARN refuses a file that has changed since the application was submitted.
    """
    marker = f"{archive}{_MARKER}"
    there = fs.status(marker)
    if there is None or now_ms - there.modified_ms > _MARKED_EVERY_MS:
        fs.open_write(marker, overwrite=True).close()


def remove_unused(fs: FileSystem, folder: str, *, retention_ms: int, now_ms: int) -> list[str]:
    """Remove the archives (and broken uploads) in the folder that nobody has used for so long; return their names.

    Deployments and running JobManagers say what they use, see ``mark_used``. What we may not remove stays.
    """
    children = {child.path.rpartition("/")[2]: child for child in fs.list(folder)}
    removed = []
    for name, child in children.items():
        is_upload = name.startswith(_UPLOADING)
        if not is_upload and not _ARCHIVE.fullmatch(name):
            continue
        marker = children.get(f"{name}{_MARKER}")
        used_ms = max(child.modified_ms, marker.modified_ms if marker else 0)
        if now_ms - used_ms <= (_BROKEN_AFTER_MS if is_upload else retention_ms):
            continue
        with contextlib.suppress(EngineError):
            for gone in (child, marker):
                if gone is not None:
                    fs.delete(gone.path)
            removed.append(name)
    return removed


def _pack_cached(kind: str, entries: list[ArchiveEntry], path: Path, pieces: queue.Queue[bytes]) -> None:
    """Pack into the cache folder, and into the queue."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(dir=folder, prefix=".packing-")
    except OSError as error:
        raise ExternalError(f"Cannot write the cache folder {folder}: {error.strerror}. Set XDG_CACHE_HOME.") from None
    try:
        with os.fdopen(number, "wb") as stream:
            pack(entries, io.BufferedWriter(_Tee(stream, pieces), _PIECE_BYTES))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    by_age = sorted(folder.glob(f"{kind}-*.zip"), key=lambda p: p.stat().st_mtime, reverse=True)
    for stale in by_age[_KEPT_ARCHIVES:]:
        with contextlib.suppress(OSError):
            stale.unlink()


class _Tee(io.RawIOBase):
    """What is written goes to a file and to a queue."""

    def __init__(self, stream: IO[bytes], pieces: queue.Queue[bytes]) -> None:
        self._stream, self._pieces = stream, pieces

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        data = bytes(piece)
        self._stream.write(data)
        self._pieces.put(data)
        return len(data)


def pack(entries: Iterable[ArchiveEntry], stream: IO[bytes] | io.BufferedWriter) -> None:
    """Write the zip: names in order, fixed times, and beside each module its byte code where it is known here, since
    compiling all of it would cost every node seconds."""
    with ParallelZipWriter(stream) as archive:
        for entry in entries:
            if not entry.name.endswith(".py"):
                with open(entry.path, "rb") as source:
                    archive.add(entry.name, source, 0o755 if ".so" in entry.name else 0o644)
                continue
            data = entry.path.read_bytes()
            archive.add(entry.name, io.BytesIO(data), 0o644)
            byte_code = _byte_code(entry.path, data)
            if byte_code is not None:
                head, _, tail = entry.name.rpartition("/")
                cached = f"__pycache__/{tail[:-3]}.{sys.implementation.cache_tag}.pyc"
                archive.add(f"{head}/{cached}" if head else cached, io.BytesIO(byte_code), 0o644)
    stream.flush()


def _byte_code(path: Path, source: bytes) -> bytes | None:
    """Return the module's byte code in the unchecked form: pip's if it is fresh, else compiled now."""
    import importlib.util
    import marshal

    header = struct.pack("<4sI8s", importlib.util.MAGIC_NUMBER, _UNCHECKED_HASH, importlib.util.source_hash(source))
    cached = Path(importlib.util.cache_from_source(str(path)))
    with contextlib.suppress(OSError):
        known = cached.read_bytes()
        stat = path.stat()
        fresh = struct.pack("<4sIII", importlib.util.MAGIC_NUMBER, 0, int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size)
        if known[:16] == fresh:
            return header + known[16:]
    try:
        # The name is replaced by the real path when the module is loaded.
        return header + marshal.dumps(compile(source, path.name, "exec", dont_inherit=True, optimize=0))
    except (SyntaxError, ValueError):
        return None  # templates and files for other versions of Python


# --- upload ---------------------------------------------------------------------------------------------------------


def _upload_queued(pieces: queue.Queue[bytes], fs: FileSystem, target: str) -> None:
    """Upload what the queue brings until b""; an error does not stop who fills it."""
    last = b"begin"

    def taken() -> Iterator[bytes]:
        nonlocal last
        while last := pieces.get():
            if last is _CUT:
                raise ExternalError(f"{target} was not packed.")
            yield last

    try:
        _upload(taken(), fs, target)
    finally:
        while last and last is not _CUT:
            last = pieces.get()


def _upload(pieces: Iterable[bytes], fs: FileSystem, target: str) -> None:
    """Write under a temporary name and rename: what is named by its content is always complete."""
    folder, _, name = target.rpartition("/")
    temporary = f"{folder}/{_UPLOADING}{getpass.getuser()}-{os.getpid()}-{name}"
    size = 0
    try:
        with fs.open_write(temporary, overwrite=True) as sink:
            for piece in pieces:
                sink.write(piece)
                size += len(piece)
        there = fs.status(target)
        if there is None or there.size_bytes != size:
            fs.rename(temporary, target, overwrite=True)
        else:
            fs.delete(temporary)  # another deployment was quicker; its file may be in use
    except BaseException:
        with contextlib.suppress(Exception):
            fs.delete(temporary)
        raise
