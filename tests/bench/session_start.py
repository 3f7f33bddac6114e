"""How long a job in a running session cluster takes to its first result: JobManager and TaskManager are processes, idle
and warm, a job of each kind was there before."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.measure import TreeWatch
from tests.process.cluster_jobs import ROOT, StandaloneCluster

__all__ = ["session_rows"]

KINDS = {"engine, functions, in a session": "rows", "engine, vectorised, in a session": "columns"}
#: An idle TaskManager's zygote loads what may be needed after two seconds without a request.
IDLE_S = 5.0
_TOLD = "first result after "


def session_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return for each kind seconds from ``execute`` to the first result, and CPU-seconds of client and cluster."""
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    cpu_s: dict[str, list[float]] = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder, TreeWatch() as watch:
        cluster = StandaloneCluster(Path(folder), taskmanagers=1, slots=2)
        try:
            for run in range(arguments.runs + 1):
                for name, kind in KINDS.items():
                    time.sleep(IDLE_S if run <= 1 else 1)
                    watch.mark()
                    first_s = _first_s(cluster, kind, arguments.timeout)
                    time.sleep(0.5)  # until the slots' end is counted
                    if run:  # the first one loads what those that follow find
                        seconds[name].append(first_s)
                        cpu_s[name].append(watch.mark()[0])
        finally:
            cluster.close()
    return [
        {
            "workload": "start-up",
            "contender": name,
            "first_result_s": [round(f(seconds[name]), 3) for f in (min, statistics.median, max)],
            "cpu_s": [round(f(cpu_s[name]), 2) for f in (min, statistics.median, max)],
            "runs": arguments.runs,
        }
        for name in KINDS
    ]


def _first_s(cluster: StandaloneCluster, kind: str, timeout_s: float) -> float:
    program = os.path.join(ROOT, "tests", "bench", "programs", "first_sum.py")
    ran = subprocess.run(
        [sys.executable, program, kind, urlsplit(cluster.rest_url).netloc],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if ran.returncode != 0:
        raise SystemExit(f"{program} failed:\n{ran.stdout}{ran.stderr}")
    return float(ran.stdout.partition(_TOLD)[2].split()[0])
