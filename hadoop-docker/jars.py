"""Finds Java and fetches the jars of Hadoop and ZooKeeper with Maven, once, into a cache folder.

Not a package manager: which jars there are is said by the pom.xml files beside this module.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
POMS = (HERE / "pom.xml", HERE / "hadoop" / "pom.xml", HERE / "zookeeper" / "pom.xml")
JAVA_OLDEST, JAVA_NEWEST = 11, 23  # Older ones do not know --add-opens; newer ones refuse Hadoop's Subject calls.
MAVEN_ATTEMPTS = 3  # A registry that stumbles once must not cost a whole test run.
HOW_TO_INSTALL = "On Debian or Ubuntu: sudo apt-get install openjdk-17-jdk-headless maven"


class ClusterError(Exception):
    """A failure that is told to the user in one message, without a traceback."""

    exit_code = 1


class ToolMissing(ClusterError):
    """Java or Maven is not on this machine."""

    exit_code = 3  # so that callers can tell "cannot be tried here" from "was tried and failed"


def find_java_home() -> Path:
    """Return the home of the Java to use: ``JAVA_HOME``, else that of ``java`` on the path."""
    told = os.environ.get("JAVA_HOME")
    found = shutil.which("java")
    if told and (Path(told) / "bin" / "java").exists():
        home = Path(told)
    elif found:
        home = Path(found).resolve().parent.parent
    else:
        raise ToolMissing(
            f"no Java: `java` is not on the path and JAVA_HOME is {told or 'not set'}; "
            f"Hadoop needs Java {JAVA_OLDEST} to {JAVA_NEWEST}. {HOW_TO_INSTALL}"
        )
    release = home / "release"
    match = re.search(r'JAVA_VERSION="(\d+)', release.read_text()) if release.exists() else None
    if match and not JAVA_OLDEST <= int(match[1]) <= JAVA_NEWEST:
        raise ToolMissing(
            f"the Java in {home} is version {match[1]}; Hadoop needs {JAVA_OLDEST} to {JAVA_NEWEST}. "
            f"Set JAVA_HOME to such a one. {HOW_TO_INSTALL}"
        )
    return home


def hadoop_version() -> str:
    """Return the version of Hadoop that the pom asks for."""
    found = ElementTree.parse(POMS[0]).getroot().find(".//{*}hadoop.version")
    if found is None or not found.text:
        raise ClusterError(f"{POMS[0]} has no property hadoop.version")
    return found.text


def cache_folder() -> Path:
    """Return the folder in which the jars of this version stand, or will."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "engine-hadoop" / hadoop_version()


def install() -> Path:
    """Return the folder with ``hadoop/``, ``zookeeper/`` (jars) and ``web/``; fetch them when they are not there."""
    folder = cache_folder()
    wanted = hashlib.sha256(b"".join(pom.read_bytes() for pom in POMS)).hexdigest()
    if _is_complete(folder, wanted):
        return folder
    find_java_home()
    maven = shutil.which("mvn")
    if maven is None:
        raise ToolMissing(
            f"no Maven: `mvn` is not on the path, and the jars of Hadoop are not yet in {folder}. {HOW_TO_INSTALL}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / ".lock"):
        if _is_complete(folder, wanted):  # Another one fetched them while we waited.
            return folder
        partial = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _fetch(maven, partial)
            (partial / "complete.json").write_text(json.dumps({"poms": wanted}))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_complete(folder: Path, wanted: str) -> bool:
    try:
        return bool(json.loads((folder / "complete.json").read_text())["poms"] == wanted)
    except (OSError, ValueError, KeyError):
        return False


def _fetch(maven: str, folder: Path) -> None:
    """Run Maven until every jar is in ``folder``."""
    output = ""
    options = f"{os.environ.get('MAVEN_OPTS', '')} -XX:-UsePerfData".strip()  # leave nothing in /tmp
    for attempt in range(1, MAVEN_ATTEMPTS + 1):
        command = [maven, "-q", "-B", "-f", str(POMS[0]), "package", f"-Dout={folder}"]
        if attempt > 1:
            command.append("-U")  # Maven remembers a failed download for a day unless told otherwise.
        done = subprocess.run(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MAVEN_OPTS": options},
        )
        output = done.stdout
        if done.returncode == 0 and (folder / "web" / "webapps" / "hdfs").is_dir():
            return
    tail = "\n".join("  " + line for line in output.strip().splitlines()[-15:])
    raise ClusterError(f"Maven could not fetch Hadoop's jars in {MAVEN_ATTEMPTS} attempts; it said last:\n{tail}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file as a lock between processes; it is given back even when this process is killed."""
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
