"""Makes a job's files usable in a slot: modules on ``sys.path``, archives extracted, others linked into its folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from engine.core.errors import InputError
from engine.protocol.control import UserFile

__all__ = ["SITE_FOLDER_KEY", "prepare_files"]

#: Configuration key under which the TaskManager says where it installed the job's requirements.
SITE_FOLDER_KEY: Final = "$internal.python.site-folder"


def prepare_files(files: Sequence[UserFile], files_dir: str, work_dir: str, site_folder: str = "") -> dict[str, str]:
    """Prepare all files; return {registered name: local path} of the distributed cache.

    ``site_folder``: installed requirements; they come after the job's own modules on ``sys.path``.

    Raises: InputError when a file is missing or an archive cannot be read.
    """
    cached: dict[str, str] = {}
    paths: list[str] = []
    for file in files:
        path = os.path.join(files_dir, file.name)
        if not os.path.exists(path):
            raise InputError(
                f"The job's file {file.name} is missing in {files_dir}; it was not shipped to this TaskManager."
            )
        match file.kind:
            case "module":
                # A .py file is found through its folder; a package folder, zip or wheel stands on the path itself.
                paths.append(os.path.dirname(path) if path.endswith(".py") else path)
            case "requirements" | "requirements-cache":
                pass  # installed by the TaskManager
            case "archive":
                _extract(path, _inside(work_dir, file.target or file.name))
            case "cache":
                cached[file.target or file.name] = path
            case _:
                _link(path, _inside(work_dir, file.target or file.name))
    if site_folder:
        paths.append(site_folder)
    sys.path[:0] = [path for path in dict.fromkeys(paths) if path not in sys.path]
    return cached


def _inside(folder: str, name: str) -> str:
    path = os.path.normpath(os.path.join(folder, name))
    if not path.startswith(os.path.normpath(folder) + os.sep):
        raise InputError(
            f"The job's file would be placed at {path}, outside of {folder}; use a relative name without '..'."
        )
    return path


def _link(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.lexists(target):
        os.symlink(source, target)


def _extract(archive: str, target: str) -> None:
    if os.path.isdir(archive):  # extracted by the TaskManager already
        _link(archive, target)
        return
    kind = "zip" if archive.endswith((".zip", ".whl", ".jar", ".pyz")) else None
    try:
        if kind == "zip":
            import zipfile

            with zipfile.ZipFile(archive) as content:
                content.extractall(target)
                for entry in content.infolist():  # zipfile forgets modes: an interpreter must stay executable
                    mode = entry.external_attr >> 16 & 0o777
                    if mode:
                        os.chmod(os.path.join(target, entry.filename), mode | 0o600)
        else:
            import tarfile

            with tarfile.open(archive) as content_tar:
                if hasattr(tarfile, "data_filter"):
                    content_tar.extractall(target, filter="data")
                else:  # Python before 3.11.4, such as Debian 12's
                    content_tar.extractall(target)
    except Exception as error:
        shutil.rmtree(target, ignore_errors=True)
        raise InputError(
            f"Archive {os.path.basename(archive)} cannot be extracted: {error}; expected zip or tar (gz, bz2, xz)."
        ) from error
