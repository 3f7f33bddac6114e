"""Five minutes of faults over a job on YARN, always the same ones; ``python -m tests.chaos`` takes others."""

from __future__ import annotations

import os

import pytest

from tests.chaos.story import SHAPE, run_chaos
from tests.hadoop.conftest import running_cluster

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(1500)]

MINUTES = 5.0
#: Of a story that once ended an application whose next ApplicationMaster found the NameNode away.
SEED = int(os.environ.get("CHAOS_SEED", "265575750"))


def test_faults_of_all_kinds_leave_the_output_exact_and_nothing_behind(hadoop_jars, tmp_path):
    with running_cluster(*SHAPE) as hadoop:
        num_faults = run_chaos(
            hadoop, tmp_path, seconds=MINUTES * 60, seed=SEED, say=lambda line: print(line, flush=True)
        )
    assert num_faults >= 10
