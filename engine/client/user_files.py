"""Collects the files that travel with a job: ``python.files``, ``python.requirements`` and ``python.archives``.

Used by the environments before they build a JobGraph. Folders are zipped so that equal content gives equal bytes, hence
one blob. Not to be confused with pickling user functions (``core/user_code``), which needs no files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Final

from engine.core.config import Configuration
from engine.core.errors import ConfigError, InputError
from engine.core.fs import file_system_of, scheme_of
from engine.core.options import JobOptions
from engine.protocol.control import UserFile

__all__ = ["collect_user_files"]

#: Zip's earliest date: the same content must give the same bytes on every day.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
#: Where the packages that requirements are installed from lie, under the job's folder.
_PACKAGES_FOLDER: Final = "requirements-packages"
_SKIPPED_FOLDERS: Final = ("__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache")
_ARCHIVE_SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".jar", ".whl")


def collect_user_files(
    config: Configuration, cached_files: Sequence[tuple[str, str]] = ()
) -> tuple[list[UserFile], dict[str, str]]:
    """Return the descriptors and, by sha256, the local paths of their contents (zipped folders lie in the temporary
    folder and are removed when the process ends).

    ``python.files``: .py, .zip, .whl, .egg, .pyz as they are; a package folder stays importable by its name, the
    content of another folder is put on the path. ``python.requirements``: ``file[#folder]``; each package in it
    becomes a file of kind "requirements-cache". ``python.archives``: ``file[#name]``, extracted to ``name``.
    ``cached_files``: (name, path) of the distributed cache.

    Raises: ConfigError that names key and path for what is missing or cannot be used.
    """
    collector = _Collector()
    for path in _split(config.get(JobOptions.PYTHON_FILES)):
        collector.add_module(path)
    requirements = config.get(JobOptions.PYTHON_REQUIREMENTS)
    if requirements:
        collector.add_requirements(requirements)
    for text in _split(config.get(JobOptions.PYTHON_ARCHIVES)):
        collector.add_archive(text)
    for name, path in cached_files:
        collector.add_cached(name, path)
    return collector.files, collector.path_by_sha256


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class _Collector:
    def __init__(self) -> None:
        self.files: list[UserFile] = []
        self.path_by_sha256: dict[str, str] = {}

    def add_module(self, text: str) -> None:
        path = _localise(JobOptions.PYTHON_FILES.key, text)
        base = os.path.basename(os.path.normpath(path))
        if os.path.isdir(path):
            is_package = os.path.isfile(os.path.join(path, "__init__.py"))
            self._add(_zip_folder(path, base if is_package else ""), f"{base}.zip", "module", path)
        else:
            self._add(path, base, "module", path)

    def add_requirements(self, text: str) -> None:
        key = JobOptions.PYTHON_REQUIREMENTS.key
        name, _, folder = text.partition("#")
        path = _localise(key, name)
        self._add(path, "requirements.txt", "requirements", path)
        if folder:
            folder = _localise(key, folder)
            if not os.path.isdir(folder):
                raise ConfigError(f"{key} is {text!r}; expected a folder with packages after the #.")
            for package in sorted(os.listdir(folder)):
                if os.path.isfile(os.path.join(folder, package)):
                    name = f"{_PACKAGES_FOLDER}/{package}"
                    self._add(os.path.join(folder, package), name, "requirements-cache", folder, _PACKAGES_FOLDER)

    def add_archive(self, text: str) -> None:
        key = JobOptions.PYTHON_ARCHIVES.key
        name, _, target = text.partition("#")
        path = _localise(key, name)
        base = os.path.basename(os.path.normpath(path))
        if os.path.isdir(path):
            self._add(_zip_folder(path, ""), f"{base}.zip", "archive", path, target or base)
            return
        if not path.endswith(_ARCHIVE_SUFFIXES):
            raise ConfigError(f"{key} has {name!r}; expected an archive: {', '.join(_ARCHIVE_SUFFIXES)}.")
        target = target or base
        if not re.fullmatch(r"[\w.+-]+", target) or target in (".", ".."):
            raise ConfigError(f"{key} has {text!r}; expected a plain folder name after the #.")
        self._add(path, base, "archive", path, target)

    def add_cached(self, name: str, text: str) -> None:
        path = _localise(f"The cached file {name}", text)
        if os.path.isdir(path):
            raise ConfigError(
                f"The cached file {name} is the folder {text!r}; expected a file. Ship folders with -pyarch."
            )
        self._add(path, f"cache/{name}/{os.path.basename(path)}", "cache", path, name)

    def _add(self, path: str, name: str, kind: str, origin: str, target: str = "") -> None:
        digest = _sha256(path)
        for known in self.files:
            if known.name == name and (known.sha256, known.target) != (digest, target):
                if known.kind == kind == "archive" and known.target != target:
                    name = f"{target}-{name}"  # one file, or two of one name, extracted to two folders
                    break
                raise ConfigError(
                    f"{origin}: another file with the name {name} is shipped already; expected different names."
                )
            if known.name == name:
                return
        self.files.append(UserFile(name, digest, os.path.getsize(path), kind, target))
        self.path_by_sha256[digest] = path


def _localise(key: str, path: str) -> str:
    """Return a local path of what is named, fetching it first from another file system."""
    if scheme_of(path) == "file":
        local = os.path.abspath(re.sub(r"^file:(//)?(?=/)", "", path))
        if not os.path.exists(local):
            raise ConfigError(f"{key} has {path!r}, which does not exist; expected a file or folder on this host.")
        if not os.access(local, os.R_OK):
            raise ConfigError(f"{key} has {path!r}, which cannot be read by this user.")
        return local
    target = os.path.join(_temporary_folder(), path.rstrip("/").rsplit("/", 1)[-1])
    try:
        with file_system_of(path).open_read(path) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except InputError as error:
        raise ConfigError(f"{key} has {path!r}: {error}") from None
    return target


def _temporary_folder() -> str:
    import atexit

    folder = tempfile.mkdtemp(prefix="flink-files-")
    atexit.register(shutil.rmtree, folder, True)
    return folder


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _zip_folder(folder: str, prefix: str) -> str:
    """Return the path of a new zip of the folder: names sorted, dates fixed, no caches."""
    path = os.path.join(_temporary_folder(), "folder.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for parent, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
            for name in sorted(names):
                source = os.path.join(parent, name)
                if name.endswith(".pyc") or not os.path.isfile(source):
                    continue
                entry = zipfile.ZipInfo(os.path.join(prefix, os.path.relpath(source, folder)), _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                # Whether a file may be executed is all that counts of its mode.
                entry.external_attr = (0o755 if os.access(source, os.X_OK) else 0o644) << 16
                with open(source, "rb") as stream, archive.open(entry, "w") as sink:
                    shutil.copyfileobj(stream, sink, 1 << 20)
    return path
