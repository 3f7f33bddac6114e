"""Five minutes of random faults over a job on YARN; ``python -m tests.chaos --minutes 60`` is the long form."""

from __future__ import annotations

import os
import random

import pytest

from tests.chaos.story import SHAPE, run_chaos
from tests.hadoop.conftest import running_cluster

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(1500)]

MINUTES = 5.0


def test_random_faults_leave_the_output_exact_and_nothing_behind(hadoop_jars, tmp_path):
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 31))
    print(f"CHAOS_SEED={seed}", flush=True)  # shown when it fails
    with running_cluster(*SHAPE) as hadoop:
        num_faults = run_chaos(
            hadoop, tmp_path, seconds=MINUTES * 60, seed=seed, say=lambda line: print(line, flush=True)
        )
    assert num_faults >= 10
