#!/usr/bin/env python3
"""Compiles libhdfs.so, Hadoop's C client, for tests: a distribution has it in lib/native, Maven's jars do not.

The source is the copy in the Python source package pydoop (Apache licence, as Hadoop's), fetched once with pip; gcc and
the headers of a JDK do the rest. Prints the folder in which libhdfs.so stands.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from jars import ClusterError, ToolMissing, cache_folder, find_java_home, locked

SOURCE = "pydoop==2.0.0"
#: pip asks a source package's setup.py for its name even when it only fetches it; this one's needs old setuptools.
BUILD_CONSTRAINT = "setuptools<70"


def build() -> Path:
    """Return the folder with libhdfs.so; it is compiled when it is not there yet."""
    java = find_java_home()
    folder = cache_folder().parent / f"libhdfs-{SOURCE.partition('==')[2]}"
    if (folder / "libhdfs.so").exists():
        return folder
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not (java / "include" / "jni.h").exists():
        raise ToolMissing(
            f"libhdfs cannot be compiled: it needs gcc and a JDK with include/jni.h (looked at {java}). "
            "On Debian or Ubuntu: sudo apt-get install gcc libc6-dev openjdk-17-jdk-headless"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / ".libhdfs-lock"), tempfile.TemporaryDirectory(dir=folder.parent) as work:
        if not (folder / "libhdfs.so").exists():
            _compile(compiler, java, _fetch(Path(work)), Path(work) / "out")
            (Path(work) / "out").rename(folder)
    return folder


def _fetch(work: Path) -> Path:
    """Return the folder with the C sources."""
    constraint = work / "constraint.txt"
    constraint.write_text(f"{BUILD_CONSTRAINT}\n")
    fetch = ["download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(work), SOURCE]
    env = {**os.environ, "PIP_CONSTRAINT": str(constraint), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    _run([sys.executable, "-m", "pip", *fetch], env)
    with tarfile.open(next(work.glob("pydoop-*.tar.gz"))) as archive:
        archive.extractall(work, filter="data")
    return next(work.glob("pydoop-*/src/libhdfs"))


def _compile(compiler: str, java: Path, source: Path, out: Path) -> None:
    out.mkdir()
    jvm = java / "lib" / "server"
    files = [*source.glob("*.c"), *source.glob("common/*.c"), *source.glob("os/posix/*.c")]
    folders = [source, source / "include", source / "os" / "posix", java / "include", java / "include" / "linux"]
    includes = [f"-I{folder}" for folder in folders]
    link = [f"-L{jvm}", "-ljvm", f"-Wl,-rpath,{jvm}", "-lpthread"]
    _run([compiler, "-O2", "-fPIC", "-shared", "-w", *includes, *map(str, files), "-o", str(out / "libhdfs.so"), *link])


def _run(words: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(words[:6])} …` ended with {done.returncode}:\n{done.stdout[-1500:]}")


if __name__ == "__main__":
    try:
        print(build())
    except ClusterError as error:
        print(f"libhdfs.py: {error}")
        sys.exit(error.exit_code)
