"""HDFS through Hadoop's own client by JNI (libhdfs, as pyarrow loads it): a JVM in each process that uses it.

Quickest for large files and the most patient with failures; found by HADOOP_HOME, JAVA_HOME and the command ``hadoop``.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, final

from engine.core.errors import ConfigError
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs_client import Problem, ProblemKind, RawStatus, check_reachable, hdfs_user, kind_of
from flink_yarn.hdfs_webhdfs import WebHdfsClient

__all__ = ["LibhdfsClient", "prepare_environment"]

#: Small and quick; -Xrs leaves SIGTERM and SIGINT to Python.
JVM_OPTIONS: Final = "-Xrs -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData"
CLASSPATH_TIMEOUT_S: Final = 60
_OTHERWISE: Final = "Or set fs.hdfs.client to webhdfs, which needs neither Java nor Hadoop."


def _libhdfs_folders(environ: Mapping[str, str]) -> Iterator[str]:
    if environ.get("ARROW_LIBHDFS_DIR"):
        yield environ["ARROW_LIBHDFS_DIR"]
    for home in (environ.get("HADOOP_HOME"), environ.get("HADOOP_HDFS_HOME")):
        if home:
            yield os.path.join(home, "lib", "native")
            yield os.path.join(home, "lib")


def _java_homes(environ: Mapping[str, str]) -> Iterator[str]:
    if environ.get("JAVA_HOME"):
        yield environ["JAVA_HOME"]
    java = shutil.which("java", path=environ.get("PATH"))
    if java:
        yield str(Path(java).resolve().parent.parent)


def _has_jvm(home: str) -> bool:
    return any((Path(home) / part / "libjvm.so").exists() for part in ("lib/server", "jre/lib/amd64/server"))


def prepare_environment(conf: HadoopConf, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what libhdfs asks the environment for, where it is not set yet.

    Raises: ConfigError that names what is missing and where it was looked for.
    """
    folders = list(dict.fromkeys(_libhdfs_folders(environ)))
    folder = next((name for name in folders if os.path.exists(os.path.join(name, "libhdfs.so"))), None)
    if folder is None:
        where = f"it is not in {', '.join(folders)}" if folders else "neither HADOOP_HOME nor ARROW_LIBHDFS_DIR is set"
        raise ConfigError(
            f"fs.hdfs.client is libhdfs, but libhdfs.so is missing: {where}. Set HADOOP_HOME to a Hadoop that has "
            f"lib/native/libhdfs.so, or ARROW_LIBHDFS_DIR to the folder of that file. {_OTHERWISE}"
        )
    homes = list(dict.fromkeys(_java_homes(environ)))
    home = next((name for name in homes if _has_jvm(name)), None)
    if home is None:
        where = f"{' and '.join(homes)} {'has' if len(homes) == 1 else 'have'} none" if homes else "there is no Java"
        raise ConfigError(
            f"fs.hdfs.client is libhdfs, but Java's libjvm.so is missing: {where}. Set JAVA_HOME. {_OTHERWISE}"
        )
    if "hadoop-common" not in environ.get("CLASSPATH", ""):
        environ["CLASSPATH"] = f"{conf.conf_dir}:{_class_path(environ)}" if conf.conf_dir else _class_path(environ)
    environ["ARROW_LIBHDFS_DIR"], environ["JAVA_HOME"] = folder, home
    environ.setdefault("LIBHDFS_OPTS", JVM_OPTIONS)


def _class_path(environ: Mapping[str, str]) -> str:
    home = environ.get("HADOOP_HOME") or ""
    beside = os.path.join(home, "bin", "hadoop")
    command = beside if os.access(beside, os.X_OK) else shutil.which("hadoop", path=environ.get("PATH"))
    problem = "there is no command `hadoop` in HADOOP_HOME/bin or on PATH"
    if command:
        done = subprocess.run(
            [command, "classpath", "--glob"],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=CLASSPATH_TIMEOUT_S,
        )
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
        problem = f"`{command} classpath --glob` ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    raise ConfigError(f"fs.hdfs.client is libhdfs, but Hadoop's classes are missing: {problem}. {_OTHERWISE}")


#: What libhdfs makes of Java's exceptions; 255: of those that it does not know, above all of lost connections.
_KIND_BY_ERRNO: Final = {
    errno.EROFS: ProblemKind.STANDBY,  # SafeModeException
    errno.EHOSTDOWN: ProblemKind.STANDBY,  # StandbyException
    errno.EDQUOT: ProblemKind.QUOTA,
    255: ProblemKind.UNREACHABLE,
}


@final
class LibhdfsClient:
    def __init__(self, authority: str, conf: HadoopConf) -> None:
        prepare_environment(conf)
        check_reachable(authority, conf)
        import pyarrow.fs as arrow

        host, _, port = authority.partition(":")
        self._arrow = arrow
        # The JVM keeps the class path, and so the configuration folder, with which this process first started it.
        known = conf.to_dict()
        try:
            self._fs: Any = arrow.HadoopFileSystem(host, int(port or 0), user=hdfs_user(), extra_conf=known)
        except OSError as error:
            raise ConfigError(f"fs.hdfs.client is libhdfs, but it cannot be loaded: {error}. {_OTHERWISE}") from None
        self._locations = WebHdfsClient(authority, conf)
        self._user = hdfs_user()

    def status(self, path: str) -> RawStatus | None:
        found = self._fs.get_file_info(path)
        return None if found.type == self._arrow.FileType.NotFound else self._raw(found)

    def _raw(self, found: Any) -> RawStatus:
        is_dir = found.type == self._arrow.FileType.Directory
        return RawStatus(0 if is_dir else int(found.size), is_dir, int(found.mtime_ns // 1_000_000))

    def children(self, path: str) -> list[tuple[str, RawStatus]]:
        return [(found.base_name, self._raw(found)) for found in self._fs.get_file_info(self._arrow.FileSelector(path))]

    def make_dirs(self, path: str) -> None:
        self._fs.create_dir(path, recursive=True)

    def move(self, source: str, target: str) -> None:
        self.make_dirs(posixpath.dirname(target) or "/")
        if self.status(source) is None:  # said here: the library only knows that it did not work
            raise FileNotFoundError(f"{source} does not exist")
        self._fs.move(source, target)

    def delete(self, path: str, recursive: bool) -> bool:
        found = self.status(path)
        if found is None:
            return False
        if not found.is_dir:
            self._fs.delete_file(path)
        elif not recursive and self.children(path):
            raise OSError("the folder is not empty")
        else:
            self._fs.delete_dir(path)
        return True

    def open(self, path: str, offset: int) -> Any:
        stream = self._fs.open_input_file(path)
        stream.seek(offset)
        return stream

    def create(self, path: str) -> Any:
        return self._fs.open_output_stream(path)

    def hosts(self, path: str, offset: int, length: int) -> dict[str, int]:
        return self._locations.hosts(path, offset, length)  # pyarrow does not tell

    def problem(self, error: Exception) -> Problem:
        text = str(error).strip().split("\n")[0]
        if isinstance(error, PermissionError):
            return Problem(ProblemKind.DENIED, f"Permission denied: user={self._user}")
        if isinstance(error, FileNotFoundError):
            return Problem(ProblemKind.MISSING, text)
        found = re.search(r"errno: (\d+)", text)
        number = int(found[1]) if found else getattr(error, "errno", None)
        kind = kind_of(str(error)) or _KIND_BY_ERRNO.get(number or 0, ProblemKind.OTHER)
        return Problem(kind, text)
