"""A session cluster on real YARN: started by yarn-session.sh, used by flink, hurt, stopped."""

from __future__ import annotations

import os
import pty
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flink_yarn.cluster_spec import SKEIN_MB
from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    ENDLESS,
    ROOT,
    SMALL,
    WORD_COUNT,
    YarnUser,
    application_id_in,
    dashboard_in,
    eventually,
    get,
    kill_process,
    processes_of,
    skein_drivers,
)
from tests.hadoop.yarn_ha import jobmanager_process
from tests.testing.patience import limit_once

pytestmark = pytest.mark.hadoop
#: The aims for `-n 2 -s 2`, from pressing enter to four slots: with packing and upload, and with both cached.
FIRST_S, CACHED_S = 60.0, 15.0


TEXT = "\n".join(f"to be or not to be that is question {i % 7}" for i in range(3000)) + "\n"


@pytest.fixture(scope="module")
def user(hadoop: HadoopCluster, tmp_path_factory: pytest.TempPathFactory) -> YarnUser:
    return YarnUser.create(hadoop, tmp_path_factory.mktemp("session"))


def own_cache(user: YarnUser) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(user.folder / "cache")}


def staging(user: YarnUser) -> tuple[str, str]:
    return ("-D", f"yarn.staging-directory=hdfs:///staging-{user.folder.name}")


@pytest.fixture(scope="module")
def session(user: YarnUser) -> Iterator[tuple[str, str, str]]:
    """A session of 2 x 2 slots: (application id, dashboard's address, what the command said).

    It is a user's first: the cache of the client, the staging folder on HDFS and the nodes' caches have nothing of it.
    """
    started = time.monotonic()
    done = user.session("-n", "2", "-s", "2", *SMALL, "-nm", "two by two", "-d", *staging(user), **own_cache(user))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Packing the engine's Python packages" in done.stdout
    print(f"four slots after {seconds:.1f} s with packing and upload, load {os.getloadavg()[0]:.1f}")
    assert seconds < limit_once(FIRST_S)
    application_id = application_id_in(done.stdout)
    yield application_id, dashboard_in(done.stdout), done.stdout
    if application_id in user.running_applications():
        user.session("-id", application_id, stdin="stop\n")


def test_a_session_says_what_flink_says_and_has_all_its_slots(session, user):
    application_id, dashboard, said = session
    for line in (
        "ClusterSpecification{masterMemoryMB=768, taskManagerMemoryMB=768, slotsPerTaskManager=2}",
        f"Submitted application {application_id}",
        "YARN application has been deployed successfully.",
        f"Found Web Interface {dashboard.removeprefix('http://')} of application '{application_id}'.",
        f'$ echo "stop" | ./bin/yarn-session.sh -id {application_id}',
    ):
        assert line in said
    assert get(f"{dashboard}/overview")["slots-total"] == 4
    report = user.application(application_id)
    assert (report["name"], report["applicationType"], report["state"]) == ("two by two", "Apache Flink", "RUNNING")
    assert report["queue"].rsplit(".", 1)[-1] == "default"


def test_the_commands_leave_no_driver_and_nothing_in_the_home(session, user):
    assert skein_drivers(str(user.folder)) == []
    assert list((user.folder / "home").iterdir()) == []


def test_most_of_a_containers_memory_is_the_jobs(session):
    """Of -tm 1024 at least 600 MB: what supervisor and zygote hold for themselves fits into the rest."""
    application_id, _, _ = session
    held_kb = 0
    for pid in processes_of(application_id, "taskmanager"):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        held_kb += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1])  # type: ignore[index]
    assert held_kb / 1024 / 2 < 1024 - 600


def test_the_java_application_master_stays_within_its_part(session):
    application_id, _, _ = session
    (java,) = [
        p
        for p, c in processes_of(application_id, "skein.ApplicationMaster").items()
        if "/bin/java " in c and "bash" not in c
    ]
    status = Path(f"/proc/{java}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024 < SKEIN_MB  # type: ignore[index]


def test_the_tracking_link_opens_the_dashboard(session, user):
    application_id, _, _ = session
    page = get(user.application(application_id)["trackingUrl"])
    target = re.search(r'content="0; url=([^"]+)"', page)
    assert target, page
    proxied = f"{user.hadoop.rm_url}/proxy/{application_id}/{target[1]}"
    assert "<html" in get(proxied).lower()
    assert get(f"{proxied}overview")["slots-total"] == 4


def test_word_count_from_hdfs_to_hdfs_is_exact(session, user):
    source = user.put("/session/in/text.txt", TEXT)
    target = f"{user.hadoop.namenode_uri}/session/counts"
    user.put("/session/programs/word_count.py", WORD_COUNT)
    program = f"{user.hadoop.namenode_uri}/session/programs/word_count.py"
    done = user.flink("run", program, "--input", source, "--output", target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Found Yarn properties file under" in done.stdout
    assert re.search("Job has been submitted with JobID [0-9a-f]{32}", done.stdout)
    counts = Counter({word: int(count) for word, count in (line.split() for line in user.lines("/session/counts"))})
    assert counts == Counter(TEXT.split())


def test_bad_input_and_output_are_one_clear_message_and_leave_nothing(session, user):
    program = user.write("word_count.py", WORD_COUNT)
    source = user.put("/session/in/text.txt", TEXT)
    root = user.hadoop.namenode_uri

    missing = user.flink("run", program, "--input", f"{root}/session/nowhere", "--output", f"{root}/session/x1")
    assert missing.returncode == 1
    assert "/session/nowhere" in missing.stderr
    assert "does not exist" in missing.stderr
    assert "Traceback" not in missing.stderr

    user.put("/session/exists/1", "precious\n")
    exists = user.flink("run", program, "--input", source, "--output", f"{root}/session/exists")
    assert exists.returncode == 1
    assert "/session/exists exists" in exists.stderr
    assert user.lines("/session/exists") == ["precious"]

    left = [name for name in user.hdfs.list("/session") if name not in ("in", "counts", "exists", "programs")]
    assert left == []


def test_flink_lists_and_cancels_jobs_of_the_session(session, user):
    _, dashboard, _ = session
    done = user.flink("run", "-d", user.write("endless.py", ENDLESS))
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = re.search("JobID ([0-9a-f]{32})", done.stdout)
    assert job_id
    eventually("the job runs", lambda: get(f"{dashboard}/jobs/{job_id[1]}")["state"] == "RUNNING")
    listed = user.flink("list")
    assert f"{job_id[1]} : endless (RUNNING)" in listed.stdout
    cancelled = user.flink("cancel", job_id[1])
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"Cancelled job {job_id[1]}." in cancelled.stdout
    eventually("it is cancelled", lambda: get(f"{dashboard}/jobs/{job_id[1]}")["state"] == "CANCELED")


def test_containers_see_neither_the_checkout_nor_its_virtual_environment(session, user):
    program = user.write(
        "where.py",
        """
import sys
from engine.datastream import StreamExecutionEnvironment

def places(_):
    import engine, numpy, os, pyarrow, sys
    return [*sys.path, engine.__file__, numpy.__file__, pyarrow.__file__, sys.prefix, *os.environ.values()]

env = StreamExecutionEnvironment.get_execution_environment()
env.from_collection([1]).flat_map(places).write_as_text(sys.argv[1])
env.execute("where")
""",
    )
    done = user.flink("run", program, f"{user.hadoop.namenode_uri}/session/where")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = user.lines("/session/where")
    assert any(line.endswith("engine/__init__.py") for line in lines)
    import sys

    forbidden = [str(ROOT), *([sys.prefix] if sys.prefix != sys.base_prefix else [])]
    assert [line for line in lines for place in forbidden if re.search(rf"(^|:){re.escape(place)}(/|:|$)", line)] == []


def test_a_killed_container_is_replaced_and_the_next_job_runs(session, user):
    application_id, dashboard, _ = session
    before = {row["id"] for row in get(f"{dashboard}/taskmanagers")["taskmanagers"]}
    victim = next(iter(processes_of(application_id, "flink_yarn.taskmanager_container")))
    kill_process(victim)
    eventually("one is gone", lambda: get(f"{dashboard}/overview")["taskmanagers"] < 2)
    eventually("four slots again", lambda: get(f"{dashboard}/overview")["slots-total"] == 4)
    after = {row["id"] for row in get(f"{dashboard}/taskmanagers")["taskmanagers"]}
    assert len(after - before) == 1
    run_word_count(user, "replaced")


def run_word_count(user: YarnUser, name: str) -> None:
    source = user.put("/session/in/text.txt", TEXT)
    target = f"{user.hadoop.namenode_uri}/session/counts-{name}"
    done = user.flink("run", user.write("word_count.py", WORD_COUNT), "--input", source, "--output", target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(user.lines(f"/session/counts-{name}")) == len(set(TEXT.split()))


def test_a_killed_jobmanager_is_back_with_the_same_containers(session, user):
    application_id, dashboard, _ = session
    before = set(processes_of(application_id, "flink_yarn.taskmanager_container"))
    kill_process(jobmanager_process(application_id))

    def slots() -> bool:
        try:
            return bool(get(f"{dashboard}/overview")["slots-total"] == 4)
        except OSError:
            return False

    eventually("the JobManager is back at its address with all slots", slots)
    assert set(processes_of(application_id, "flink_yarn.taskmanager_container")) == before
    assert user.application(application_id)["runningContainers"] == 3
    run_word_count(user, "restarted")


def test_a_terminal_helps_and_stops_the_session_and_nothing_is_left(session, user):
    application_id, _, _ = session
    properties = user.folder / f".yarn-properties-{user.hadoop.user}"
    assert application_id in properties.read_text()
    done = user.session("-id", application_id, stdin="help\nstop\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stop - stop the YARN session" in done.stdout
    report = user.application(application_id)
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "SUCCEEDED")
    assert not properties.exists()
    eventually("no process is left", lambda: not processes_of(application_id))
    assert application_id not in user.hdfs.list(f"/user/{user.hadoop.user}/.skein")
    gone = user.flink("list", "-yid", application_id)
    assert gone.returncode == 1
    assert "has ended (FINISHED, SUCCEEDED)" in gone.stderr


def test_a_cached_archive_makes_the_second_session_quick_and_kill_leaves_nothing(user, session):
    started = time.monotonic()
    done = user.session("-n", "2", "-s", "2", *SMALL, "-nm", "quick", "-d", *staging(user), **own_cache(user))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    application_id = application_id_in(done.stdout)
    print(f"four slots after {seconds:.1f} s with the cached archives, load {os.getloadavg()[0]:.1f}")
    assert "Packing" not in done.stdout
    assert seconds < limit_once(CACHED_S)
    user.flink("run", "-d", user.write("endless.py", ENDLESS))
    eventually("slot processes", lambda: len(processes_of(application_id)) > 6)
    killed = user.run_yarn("application", "-kill", application_id)
    assert killed.returncode == 0, killed.stderr
    eventually("no process is left", lambda: not processes_of(application_id))
    assert user.application(application_id)["finalStatus"] == "KILLED"


def test_a_session_ends_with_the_terminal_that_it_is_attached_to(user):
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["-n", "1", "-s", "1", *SMALL, "-nm", "attached", *staging(user)]
        os.execve(ROOT / "scripts" / "yarn-session.sh", ["yarn-session.sh", *words], {**user.env, **own_cache(user)})
    said = ""
    try:
        while "stop - stop the YARN session" not in said:
            said += os.read(terminal, 4096).decode()  # ends with OSError when the command has died
    finally:
        os.close(terminal)  # the kernel sends SIGHUP, and whatever is printed from now on fails
    application_id = application_id_in(said)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    report = user.application(application_id)
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "SUCCEEDED")
    assert not (user.folder / f".yarn-properties-{user.hadoop.user}").exists()
    eventually("no process is left", lambda: not processes_of(application_id))


def test_the_folder_of_temporary_files_is_as_before(user):
    assert list(user.temporary.iterdir()) == []
