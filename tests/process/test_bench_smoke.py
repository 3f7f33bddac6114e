"""The benchmark programs run and count alike: seconds, no peers, so that they cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_vectorised_and_lambda_word_counts_agree():
    command = [sys.executable, "-m", "tests.bench", "smoke", "--only", "words", "--size", "1MB"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine / engine-lambdas" in done.stdout


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("keyed", "RESULT rep=1 warm cpu="),
        ("latency", "timeout 0 ms: "),
        ("channels", "6 channels"),
        ("slots", "word-count engine         2 slots"),
        ("lambdas", "10000 events, CPU"),
        ("recovery", "kill -9 to first record, s"),
    ],
)
def test_a_benchmark_runs_and_loses_nothing(part, expected):
    command = [sys.executable, "-m", "tests.bench", "smoke", "--only", part]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "checkpoint-cost --beside --keys 1000 --value-bytes 64 --runs 1 --seconds 3 --settle-s 0 --memory 1g",
            '"workload": "checkpoint cost", "ratio": ',
        ),
        ("election -n 1 --only filesystem", "filesystem: election after kill -9"),
        ("recovery --keys 1000 --value-bytes 64 --rate 2000 --increments 1 --memory 1g", "kill_to_first_record_s"),
    ],
)
def test_a_command_with_processes_of_its_own_measures_on_little(command, expected):
    words = [sys.executable, "-m", "tests.bench", *command.split()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout


def test_the_engine_adds_less_to_a_call_than_it_may():
    command = [sys.executable, "-m", "tests.bench.row_steps", "--rounds", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("limit 300") == 4


def test_keyed_and_windowed_lambdas_lose_no_event():
    command = [sys.executable, "-m", "tests.bench.lambdas", "smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("events 600000") == 7
