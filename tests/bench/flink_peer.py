"""Flink 2.3 in Java, from the jars of its Python package: its programs compiled, and run in a local JVM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.bench.measure import Measurement, run

__all__ = ["OPENS", "FlinkPeer"]

SOURCES = Path(__file__).resolve().parent / "peers" / "flink"
#: Java 17 hides what Flink's serializers need.
_PACKAGES = (
    "lang",
    "net",
    "io",
    "nio",
    "lang.reflect",
    "text",
    "time",
    "util",
    "util.concurrent",
    "util.concurrent.atomic",
    "util.concurrent.locks",
)
OPENS = tuple(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _PACKAGES)


class FlinkPeer:
    """``python``: the interpreter of the environment that has apache-flink; ``cache``: where classes go."""

    def __init__(self, python: str, cache: Path) -> None:
        self.cache = cache
        (self.home,) = Path(python).parents[1].glob("lib/python3*/site-packages/pyflink")
        self._classpath = ":".join(map(str, sorted(self.home.glob("lib/*.jar"))))
        self._classes = cache / "flink-classes"
        self.jar = cache / "flink-programs.jar"
        self._compile()

    def _compile(self) -> None:
        sources = sorted(SOURCES.rglob("*.java"))
        stamp = self._classes / ".stamp"
        wanted = str([(str(path), path.stat().st_mtime) for path in sources])
        if stamp.exists() and stamp.read_text() == wanted and self.jar.exists():
            return
        shutil.rmtree(self._classes, ignore_errors=True)
        self._classes.mkdir(parents=True)
        command = ["javac", "-nowarn", "-d", str(self._classes), "-cp", self._classpath, *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"javac: {done.stderr[-3000:]}")
        shutil.copytree(SOURCES / "META-INF", self._classes / "META-INF")
        subprocess.run(["jar", "cf", str(self.jar), "-C", str(self._classes), "."], check=True)
        stamp.write_text(wanted)

    def run(
        self, main: str, arguments: list[str], timeout_s: float, heap: str = "6g", collector: str = "Parallel"
    ) -> Measurement:
        """Run a program in one JVM. Raises: RuntimeError when it fails."""
        command = ["java", f"-Xms{heap}", f"-Xmx{heap}", f"-XX:+Use{collector}GC", "-XX:MaxDirectMemorySize=2g", *OPENS]
        command += ["-cp", f"{self._classpath}:{self._classes}", main, *arguments]
        # Parquet and Hadoop on the class path must not look at what this machine has.
        env = {name: value for name, value in os.environ.items() if name not in ("HADOOP_CLASSPATH", "PYTHONPATH")}
        result = run(command, timeout_s=timeout_s, env=env)
        if result.exit_code != 0:
            raise RuntimeError(f"{main} failed: {result.output[-3000:]}")
        return result
