"""The process that starts the JobManager again in its container: real forks of a small Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flink_yarn.master_supervisor import CRASHES_MAX, PRELOAD

#: Its words are what the JobManagers do, one after the other, the last one again and again.
PROGRAM = """
import os, signal, sys, time
from flink_yarn.master_supervisor import Supervisor

log, *deeds = sys.argv[1:]

def tell(text):
    with open(log, "a") as stream:
        stream.write(text + "\\n")

def run():
    number = int(os.environ["FLINK_RESTART"])
    deed = deeds[min(number, len(deeds) - 1)]
    is_default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    tell(f"run {number} after {os.environ['FLINK_LAST_EXIT'] or 'none'} {deed} {is_default}")
    if deed == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "drains":
        signal.signal(signal.SIGTERM, lambda *words: (time.sleep(0.1), tell("drained"), sys.exit(0)))
        print("runs", flush=True)
        time.sleep(600)
    return int(deed)

sys.exit(Supervisor(run, lambda code: tell(f"given up {code}")).supervise())
"""
ROOT = Path(__file__).resolve().parents[3]


def start(tmp_path: Path, *deeds: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), *deeds]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], tmp_path: Path) -> tuple[int, list[str]]:
    """Return (exit code, what was told)."""
    try:
        process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, (tmp_path / "log").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1])
def test_a_jobmanager_that_ended_as_told_or_cannot_start_is_not_started_again(tmp_path, code):
    assert end(start(tmp_path, str(code)), tmp_path) == (code, [f"run 0 after none {code} True"])


def test_one_that_died_is_followed_by_one_that_knows_how(tmp_path):
    told = ["run 0 after none killed True", "run 1 after 137 70 True", "run 2 after 70 0 True"]
    assert end(start(tmp_path, "killed", "70", "0"), tmp_path) == (0, told)


def test_it_is_given_up_when_it_died_too_often(tmp_path):
    code, told = end(start(tmp_path, "killed"), tmp_path)
    assert code == 137
    assert len(told) == 1 + CRASHES_MAX + 1
    assert told[-1] == "given up 137"


def test_sigterm_is_passed_on_and_waited_for_and_nothing_is_started_after_it(tmp_path):
    process = start(tmp_path, "drains")
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    process.send_signal(signal.SIGTERM)
    assert end(process, tmp_path) == (128 + signal.SIGTERM, ["run 0 after none drains True", "drained"])


def test_what_is_loaded_beforehand_may_be_forked():
    """No thread, no connection, and no packages of tasks that a JobManager does not need."""
    program = (
        "import os, sys\n"
        "from flink_yarn.master_supervisor import _preload\n"
        "before = os.listdir('/proc/self/fd')\n"
        "_preload()\n"
        "print(len(os.listdir('/proc/self/task')), len(os.listdir('/proc/self/fd')) - len(before))\n"
        "print({'numpy', 'pyarrow', 'numba', 'pandas'} & set(sys.modules))\n"
    )
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "1 0\nset()\n", done.stdout + done.stderr
    assert "flink_yarn.application_master" in PRELOAD
