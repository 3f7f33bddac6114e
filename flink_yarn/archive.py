"""Packs the engine and the Python packages that it needs into two archives for YARN's nodes.

One has the packages, which are large and change rarely, one the engine itself. They are named by their content, kept
in the user's cache folder and on HDFS, and cached by NodeManagers: a second deployment packs and uploads nothing. Their
roots belong on ``PYTHONPATH``. Not here: users' files (``session_client``).
"""

from __future__ import annotations

import configparser
import contextlib
import getpass
import hashlib
import importlib.metadata
import io
import os
import re
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.core.errors import ConfigError, ExternalError
from engine.core.fs import FileSystem

__all__ = [
    "ArchiveEntry",
    "content_hash",
    "engine_entries",
    "local_archives",
    "package_entries",
    "requirement_closure",
    "upload_archive",
]

#: Changes whenever the same inputs would give another archive.
_FORMAT: Final = "3"
#: What runs on a node needs none of these.
_LEFT_OUT: Final = re.compile(
    r"(^|/)(tests?|__pycache__|include|examples?)/"
    r"|\.(h|hpp|hh|pxd|pyx|pxi|pyi|a|c|cc|cpp|cu|pc|cmake|md|rst)$"
    r"|^pyarrow/(src/|.*(flight|gandiva|_tests?\.|libarrow_python\.so\.\d+\.|encryption\.so\.\d+\.))"
    r"|^numba/cuda/"
    r"|^(pip|setuptools|pkg_resources|wheel)/"
    r"|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|licenses/|LICENSE|sboms/)"
)
#: Taken back from the above: imported at run time in spite of their name.
_KEPT: Final = re.compile(r"^(numpy/(testing|_core/tests/_natype)|numba/(testing|tests/__init__)|numba/cuda/).*\.py$")
_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
#: PEP 552: never compared with the source, whose times change when a NodeManager unpacks it.
_UNCHECKED_HASH: Final = 0b01
#: Packages of extras that are shipped when they are there.
_OPTIONAL: Final = ("hdfs-native",)
_KEPT_ARCHIVES: Final = 3


@dataclass(frozen=True)
class ArchiveEntry:
    """One file: its name in the archive and where it is here."""

    name: str
    path: Path
    #: changes when the content does: a hash of the file, or what its distribution says of it
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
    """Return the files of ``engine`` and ``flink_yarn``, sorted by name."""
    home = _engine_home()
    entries = []
    for package in ("engine", "flink_yarn"):
        for path in (home / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                entries.append(ArchiveEntry(path.relative_to(home).as_posix(), path, digest))
    return sorted(entries, key=lambda entry: entry.name)


def package_entries() -> list[ArchiveEntry]:
    """Return the files of everything that the engine needs besides Python itself, sorted by name."""
    entries: dict[str, ArchiveEntry] = {}
    names = [*_own_requirements(), *_OPTIONAL]
    if sys.version_info >= (3, 12):
        names.append("setuptools")  # skein asks for distutils, which Python has no more
    for distribution in requirement_closure(names):
        if _normalised(distribution.metadata["Name"]) != "engine":
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
    for entry in entries:
        digest.update(f"{entry.name} {entry.stamp}\n".encode())
    return digest.hexdigest()[:32]


# --- packing --------------------------------------------------------------------------------------------------------


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "engine" / "archives"


def local_archives(say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Return the paths of both archives on this host, the engine's first; packs what the cache folder does not have.

    The newest of each kind stay there, older ones are removed.
    """
    return [
        _local_archive("engine", engine_entries(), lambda line: None),
        _local_archive("packages", package_entries(), say),
    ]


def _local_archive(kind: str, entries: list[ArchiveEntry], say: Callable[[str], None]) -> Path:
    folder = _cache_folder()
    path = folder / f"{kind}-{content_hash(entries)}.zip"
    if path.is_file():
        with contextlib.suppress(OSError):
            os.utime(path)
        return path
    say("Packing the engine's Python packages for YARN's nodes; this is done once.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(dir=folder, prefix=".packing-")
    except OSError as error:
        raise ExternalError(f"Cannot write the cache folder {folder}: {error.strerror}. Set XDG_CACHE_HOME.") from None
    try:
        with os.fdopen(number, "wb") as stream:
            pack(entries, stream)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    by_age = sorted(folder.glob(f"{kind}-*.zip"), key=lambda p: p.stat().st_mtime, reverse=True)
    for stale in by_age[_KEPT_ARCHIVES:]:
        with contextlib.suppress(OSError):
            stale.unlink()
    return path


def pack(entries: Iterable[ArchiveEntry], stream: io.BufferedIOBase | io.BufferedWriter) -> None:
    """Write the zip: names in order, fixed times, and beside each module its byte code where it is known here, since
    compiling all of it would cost every node seconds."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for entry in entries:
            data = entry.path.read_bytes()
            _write(archive, entry.name, data, 0o755 if ".so" in entry.name else 0o644)
            if entry.name.endswith(".py"):
                byte_code = _byte_code(entry.path, data)
                if byte_code is not None:
                    head, _, tail = entry.name.rpartition("/")
                    cached = f"__pycache__/{tail[:-3]}.{sys.implementation.cache_tag}.pyc"
                    _write(archive, f"{head}/{cached}" if head else cached, byte_code, 0o644)


def _write(archive: zipfile.ZipFile, name: str, data: bytes, mode: int) -> None:
    info = zipfile.ZipInfo(name, _ZIP_EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (0o100000 | mode) << 16
    archive.writestr(info, data)


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


def upload_archive(local: Path, fs: FileSystem, folder: str, *, say: Callable[[str], None] = lambda line: None) -> str:
    """Return the archive's path on HDFS; copies it only when it is not there yet.

    It gets a temporary name first: what is named by its content is always complete.
    """
    target = f"{folder.rstrip('/')}/{local.name}"
    there = fs.status(target)
    if there is not None and there.size_bytes == local.stat().st_size:
        return target
    say(
        f"Uploading {local.name.partition('-')[0]} ({local.stat().st_size / (1 << 20):.1f} MB) to {folder}; "
        "this is done once."
    )
    temporary = f"{folder.rstrip('/')}/.uploading-{getpass.getuser()}-{os.getpid()}-{local.name}"
    try:
        with open(local, "rb") as source, fs.open_write(temporary, overwrite=True) as sink:
            while chunk := source.read(1 << 22):
                sink.write(chunk)
        again = fs.status(target)
        if again is None or again.size_bytes != local.stat().st_size:
            fs.rename(temporary, target, overwrite=True)
        else:
            fs.delete(temporary)  # another deployment was quicker; its file may be in use
    except BaseException:
        with contextlib.suppress(Exception):
            fs.delete(temporary)
        raise
    return target
