"""A job on YARN under random faults, from its start to its exact end, and what may not be left over."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.chaos.faults import Hands
from tests.chaos.plan import timeline
from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import SMALL, YarnUser, application_id_in, eventually, get, processes_of
from tests.hadoop.yarn_ha import ExactJob, ha_user, job_id_in, job_state, rest, zookeeper_nodes

__all__ = ["SHAPE", "run_chaos"]

#: Words for ``cluster.py up``.
SHAPE: Final = ("--datanodes", "2", "--replication", "2", "--nodemanagers", "2", "--zookeeper", "3")
LINES_BY_S: Final = 350  #: as fast as the slow job is at most
#: After a fault, with nothing else broken, there is new output within this time, times the load.
GOES_ON_S: Final = 90.0
CALM_S: Final = 60.0  #: So often everything is mended, and the job has to be seen to go on.

CONFIG: Final = """
restart-strategy.fixed-delay.attempts: 1000000
yarn.maximum-failed-containers-per-interval: 100000
"""


def run_chaos(hadoop: HadoopCluster, folder: Path, *, seconds: float, seed: int, say: Callable[[str], None]) -> int:
    """Run a job under faults for so long, end it and check all; return the number of faults. Raises AssertionError."""
    user = ha_user(hadoop, folder)
    with (folder / "conf" / "flink-conf.yaml").open("a") as stream:
        stream.write(CONFIG)
    job = ExactJob(user, folder / "marks", "chaos", num_lines=int(LINES_BY_S * (seconds * 1.5 + 240)))
    session = user.session("-n", "2", "-s", "1", *SMALL, "-nm", "chaos", "-d", "-D", "yarn.application-attempts=100")
    assert session.returncode == 0, session.stdout + session.stderr
    application_id = application_id_in(session.stdout)
    hands, job_id = Hands(hadoop, application_id), ""
    try:
        submitted = user.flink("run", "-d", "-yid", application_id, *job.words)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        job_id = job_id_in(submitted.stdout)
        job.until_output()
        num_faults = _strike(hands, job, seconds, seed, say)
        job.hurry()
        began = time.monotonic()
        eventually(
            "the job has finished",
            lambda: job_state(user, application_id, job_id) == "FINISHED",
            300,
        )
        say(f"finished {time.monotonic() - began:.1f} s after the last fault was mended")
        job.check_exact()
    except AssertionError:
        report = user.application(application_id)
        words = ("state", "finalStatus", "diagnostics", "runningContainers")
        say(f"application: {', '.join(f'{word} {report.get(word)}' for word in words)}")
        say(f"exceptions: {str(rest(user, application_id, f'/jobs/{job_id}/exceptions'))[:4000]}")
        raise
    finally:
        hands.mend_all()
        ended = user.session("-id", application_id, stdin="stop\n")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    _check_nothing_is_left(user, application_id)
    return num_faults


def _strike(hands: Hands, job: ExactJob, seconds: float, seed: int, say: Callable[[str], None]) -> int:
    num_faults, began, seen = 0, time.monotonic(), job.files()
    slipped_s = calm_s = 0.0
    for step in timeline(seed, seconds):
        time.sleep(max(0.0, began + slipped_s + step.at_s - time.monotonic()))
        if step.mends:
            hands.mend(step.strike)
        else:
            hit = hands.strike(step.strike)
            num_faults += bool(hit)
            what = step.strike.fault.name + ("" if hit else ": nothing there to hit")
            say(f"{time.monotonic() - began:7.1f} s  {what}, load {os.getloadavg()[0]:.0f}")
        if step.at_s - calm_s >= CALM_S:
            calm_s = step.at_s
            hands.mend_all()
            seen = _goes_on(job, seen, say)
        # Daemons take their time to start: what comes later comes that much later.
        slipped_s = max(slipped_s, time.monotonic() - began - step.at_s)
    hands.mend_all()
    _goes_on(job, seen, say)
    return num_faults


def _goes_on(job: ExactJob, seen: set[str], say: Callable[[str], None]) -> set[str]:
    began = time.monotonic()
    before = job.files()
    eventually("the job goes on", lambda: job.files() - before, GOES_ON_S)
    now = job.files()
    say(f"           all is mended: output after {time.monotonic() - began:.1f} s; {len(now - seen)} new files in all")
    return now


def _check_nothing_is_left(user: YarnUser, application_id: str) -> None:
    eventually("no process is left", lambda: not processes_of(application_id), 30)
    assert zookeeper_nodes(user.hadoop, f"/flink/{application_id}") == []
    for folder in ("/ha", "/ha-checkpoints"):
        left = user.hdfs.list(folder) if user.hdfs.status(folder, strict=False) else []
        assert left == [], folder
    assert application_id not in user.hdfs.list(f"/user/{user.hadoop.user}/.skein")
    assert list(user.temporary.iterdir()) == []

    def containers() -> int:
        nodes = get(f"{user.hadoop.rm_url}/ws/v1/cluster/nodes")["nodes"]["node"]
        return sum(int(node["numContainers"]) for node in nodes if node["state"] == "RUNNING")

    eventually("no container is left", lambda: containers() == 0, 30)
