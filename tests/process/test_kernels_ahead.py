"""Kernels of columnar operators are loaded by the modules that specs name: a running job compiles none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_operators_on_columns_need_no_kernel_that_was_not_loaded_ahead():
    command = [sys.executable, "-m", "tests.process.kernel_runs"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=True)
    lines = ran.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["keyed", "windows", "sessions", "joins", "tops"], ran.stdout
    assert all(int(line.partition(": ")[2]) > 15 for line in lines), ran.stderr
