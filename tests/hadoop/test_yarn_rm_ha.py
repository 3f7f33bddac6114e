"""Two real ResourceManagers: the active one is killed, and neither the running job nor its user is any worse off."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest

from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.yarn_client import YarnClient
from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import SMALL, YarnUser, application_id_in, eventually, get, kill_process
from tests.hadoop.yarn_ha import ExactJob, ha_user, job_id_in, rest, taskmanagers
from tests.testing.patience import limit_once

pytestmark = [pytest.mark.hadoop, pytest.mark.timeout(600)]
#: From the kill to an active ResourceManager: the session with ZooKeeper is 4 s.
FAILOVER_S = 15.0


@pytest.fixture(scope="module")
def user(yarn_pair: HadoopCluster, tmp_path_factory: pytest.TempPathFactory) -> YarnUser:
    return ha_user(yarn_pair, tmp_path_factory.mktemp("rm-ha"))


@pytest.fixture(scope="module")
def session(user: YarnUser) -> Iterator[str]:
    """Two containers with a slot each."""
    done = user.session("-n", "2", "-s", "1", *SMALL, "-nm", "rm-ha", "-d")
    assert done.returncode == 0, done.stdout + done.stderr
    application_id = application_id_in(done.stdout)
    yield application_id
    user.session("-id", application_id, stdin="stop\n")  # also while a ResourceManager takes over


def overview_by_tracking_link(user: YarnUser, application_id: str) -> int:
    """Return the number of slots that the dashboard shows behind YARN's link; 0 while it does not open."""
    try:
        page = get(user.application(application_id)["trackingUrl"])
        target = re.search(r'content="0; url=([^"]+)"', page)
        if target is None:
            return 0
        return int(get(f"{user.hadoop.rm_url}/proxy/{application_id}/{target[1]}overview")["slots-total"])
    except (OSError, ValueError, TypeError):
        return 0


def test_a_job_and_its_user_go_on_with_the_other_resourcemanager(session, user, tmp_path):
    hadoop = user.hadoop
    client = YarnClient(HadoopConf.load(user.env))
    job = ExactJob(user, tmp_path / "marks", "rm-ha")
    done = user.flink("run", "-d", "-yid", session, *job.words)
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = job_id_in(done.stdout)
    job.until_output()

    def history() -> tuple[object, ...]:
        attempts = get(f"{hadoop.rm_url}/ws/v1/cluster/apps/{session}/appattempts")["appAttempts"]["appAttempt"]
        job_now = rest(user, session, f"/jobs/{job_id}")
        return len(attempts), job_now["state"], job_now["timestamps"]["RESTARTING"], taskmanagers(session)

    before = history()
    was = hadoop.active_rm
    hadoop.daemon("kill9", was)
    seen, began = job.files(), time.monotonic()
    # A subtask closes one file a checkpoint: its second one was made since.
    eventually("output while no ResourceManager is active", lambda: job.most_by_subtask(job.files() - seen) >= 2)
    output_s = time.monotonic() - began
    # Asked while none is active, or the application is not known to be running yet: it waits.
    listed = user.flink("list", "-yid", session)
    assert " : rm-ha (RUNNING)" in listed.stdout, listed.stdout + listed.stderr

    def other_is_active() -> bool:
        try:
            return hadoop.active_rm != was
        except OSError:
            return False

    eventually("the other ResourceManager is active", other_is_active, 60)
    active_s = time.monotonic() - began
    eventually("the application has registered there", lambda: client.application(session).state == "RUNNING", 60)
    registered_s = time.monotonic() - began
    assert client.application(session).name == "rm-ha"
    eventually("the tracking link opens the dashboard", lambda: overview_by_tracking_link(user, session) == 2, 60)
    link_s = time.monotonic() - began
    eventually("all containers are known to it", lambda: user.application(session)["runningContainers"] == 3, 60)
    known_s = time.monotonic() - began
    assert history() == before
    times = f"output {output_s:.1f}, the other one active {active_s:.1f}, the application RUNNING there "
    times += f"{registered_s:.1f}, the tracking link {link_s:.1f}, its containers known {known_s:.1f}"
    print(f"\n{was} killed; seconds until: {times}; load {os.getloadavg()[0]:.1f}")
    assert active_s < limit_once(FAILOVER_S)

    victim = min(taskmanagers(session))
    job.survive(
        "kill -9 of a TaskManager after the failover",
        lambda: kill_process(victim),
        15,
        noticed=lambda: rest(user, session, f"/jobs/{job_id}")["timestamps"]["RESTARTING"] != before[2],
    )
    assert len(taskmanagers(session)) == 2
    assert victim not in taskmanagers(session)

    began = time.monotonic()
    other = user.session(*SMALL, "-nm", "after the failover", "-d")
    assert other.returncode == 0, other.stdout + other.stderr
    print(f"\na new application is up after {time.monotonic() - began:.1f} s")
    stopped = user.session("-id", application_id_in(other.stdout), stdin="stop\n")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr

    hadoop.daemon("start", was)  # it stands by, and is asked first when it is the first of the configuration
    assert hadoop.active_rm != was
    assert client.application(session).state == "RUNNING"
    assert len(client.nodes()) == 2
    job.hurry()
    eventually("the job has finished", lambda: rest(user, session, f"/jobs/{job_id}")["state"] == "FINISHED", 120)
    job.check_exact()
