"""What slots do when something goes wrong: user errors, kills, strangers, lost parents."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ExternalError
from engine.core.ids import AllocationID, JobID
from engine.graph.transformation import ShipStrategy
from engine.operators.base import Operator, OperatorSpec, PollResult, SourceOperator
from engine.protocol.control import DeployTask
from engine.protocol.lifecycle import ExecutionState
from engine.runtime.taskmanager.zygote import Zygote
from tests.process.slot_cluster import ROOT, SlotCluster, Vertex, Wire
from tests.process.slot_operators import Apply, Collect, Numbers
from tests.testing.patience import GIVE_UP_S

UNIX = ("127.0.0.1", "127.0.0.1")
TCP = ("127.0.0.1", "127.0.0.2")
ENDLESS = 10**9


def in_slots(hosts: tuple[str, ...], body: Callable[[SlotCluster], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with SlotCluster(hosts) as cluster:
            await body(cluster)

    asyncio.run(run())


def sink_elsewhere(name: str, subtask: int) -> int:
    return int(name == "sink")


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(GIVE_UP_S):
        while is_alive(pid):
            await asyncio.sleep(0.01)


def test_an_error_of_user_code_names_operator_and_lines_and_leaves_the_slot_alive():
    def bad(row: int) -> float:
        return 1 / (row - 500)

    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [Numbers(1000)]), Vertex("sink", [Apply(bad), Collect()])]
        cluster.deploy(vertices, [Wire("src", "sink")], sink_elsewhere)
        sink = cluster.attempt("sink")
        await cluster.until(lambda: cluster.has_ended(sink))
        error = cluster.story.errors[sink]
        assert cluster.story.last[sink].state is ExecutionState.FAILED
        assert error.type_name == "ZeroDivisionError"
        assert error.domain == "user"
        assert "in operator 'sink'" in error.message
        assert "return 1 / (row - 500)" in error.message
        assert "stream_task" not in error.message
        # The slot goes on with other tasks.
        others = [Vertex("other src", [Numbers(10)]), Vertex("other sink", [Collect()])]
        await cluster.run(others, [Wire("other src", "other sink")], lambda name, subtask: 1)
        assert cluster.story.events[-1][1] == (0, list(range(10)))

    in_slots(UNIX, body)


@pytest.mark.parametrize(
    ("wire", "told"),
    [
        (Wire("src", "sink", ShipStrategy.HASH, lambda row: 1 // row), "in operator 'src' on record: 0"),
        (Wire("src", "sink", ShipStrategy.HASH, lambda row: [row]), "on record: 0"),
        (Wire("src", "sink", ShipStrategy.CUSTOM, lambda row: row, lambda key, num: 7), "channel 7"),
        (Wire("src", "sink", ShipStrategy.CUSTOM, lambda row: row, lambda key, num: "x"), "on record: 0"),
    ],
    ids=["selector raises", "key is a list", "channel out of range", "channel is no number"],
)
def test_an_error_while_partitioning_is_the_users(wire: Wire, told: str):
    async def body(cluster: SlotCluster) -> None:
        cluster.deploy([Vertex("src", [Numbers(10)]), Vertex("sink", [Collect()], 2)], [wire])
        source = cluster.attempt("src")
        await cluster.until(lambda: cluster.has_ended(source))
        assert told in cluster.story.errors[source].message
        assert cluster.story.errors[source].domain == "user"

    in_slots(UNIX, body)


def test_sys_exit_in_user_code_fails_the_task_not_the_slot():
    async def body(cluster: SlotCluster) -> None:
        cluster.deploy([Vertex("src", [Numbers(10), Apply(lambda row: sys.exit(3))])], [])
        source = cluster.attempt("src")
        await cluster.until(lambda: cluster.has_ended(source))
        assert cluster.story.errors[source].type_name == "SystemExit"
        assert is_alive(cluster.slots[0].pid)

    in_slots(UNIX, body)


@pytest.mark.parametrize("hosts", [UNIX, TCP], ids=["unix", "tcp"])
def test_a_killed_slot_is_seen_by_its_consumer_and_by_its_handle(hosts: tuple[str, ...]):
    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [Numbers(ENDLESS)]), Vertex("sink", [Apply(lambda row: None)])]
        cluster.deploy(vertices, [Wire("src", "sink")], sink_elsewhere)
        sink = cluster.attempt("sink")
        await cluster.until(lambda: ExecutionState.RUNNING in cluster.story.states[sink])
        await cluster.until(
            lambda: any(sink in r.metrics and r.metrics[sink].records_in for r in cluster.story.reports)
        )
        cluster.slots[0].kill()
        assert await cluster.slots[0].wait() == -signal.SIGKILL
        await cluster.until(lambda: cluster.has_ended(sink))
        error = cluster.story.errors[sink]
        assert error.domain == "external"
        assert f"slot of TaskManager tm-{hosts[0]}-0" in error.message
        assert "lost" in error.message

    in_slots(hosts, body)


def test_a_producer_that_is_not_there_is_an_error_of_the_consumer():
    async def body(cluster: SlotCluster) -> None:
        cluster.slots[0].kill()
        await cluster.slots[0].wait()
        vertices = [Vertex("src", [Numbers(1)]), Vertex("sink", [Collect()])]
        cluster.deploy(vertices, [Wire("src", "sink")], sink_elsewhere, only=["sink"])
        sink = cluster.attempt("sink")
        await cluster.until(lambda: cluster.has_ended(sink))
        assert "Cannot connect to the slot of TaskManager tm-127.0.0.1-0" in cluster.story.errors[sink].message

    in_slots(UNIX, body)


@dataclass(frozen=True)
class Traced(OperatorSpec):
    """A source that waits for ever and writes what is done to it."""

    path: str
    num_inputs = 0

    def build(self) -> Operator:
        return _Traced(self.path)


class _Traced(SourceOperator):
    def __init__(self, path: str) -> None:
        self._path = path

    def poll(self, rows_max: int) -> PollResult:
        return PollResult.IDLE

    def _note(self, what: str) -> None:
        with open(self._path, "a") as trace:
            trace.write(what)

    def cancel(self) -> None:
        self._note("cancel,")

    def finish(self) -> None:
        self._note("finish,")

    def close(self) -> None:
        self._note("close,")


def test_cancel_stops_sources_and_closes_operators(tmp_path: Any):
    path = str(tmp_path / "trace")

    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [Traced(path)]), Vertex("sink", [Apply(lambda row: None)])]
        cluster.deploy(vertices, [Wire("src", "sink")], sink_elsewhere)
        attempts = [cluster.attempt("src"), cluster.attempt("sink")]
        await cluster.until(lambda: all(ExecutionState.RUNNING in cluster.story.states[a] for a in attempts))
        for attempt in attempts:
            cluster.cancel(attempt)
        await cluster.until(lambda: all(map(cluster.has_ended, attempts)))
        assert [cluster.story.last[attempt].state for attempt in attempts] == [ExecutionState.CANCELED] * 2
        with open(path) as trace:
            assert trace.read() == "cancel,close,"

    in_slots(UNIX, body)


def test_a_slot_of_another_job_is_refused():
    async def body(cluster: SlotCluster) -> None:
        await cluster.add_slot(2, "127.0.0.1", JobID.generate())
        vertices = [Vertex("src", [Numbers(ENDLESS)]), Vertex("sink", [Collect()])]
        cluster.deploy(vertices, [Wire("src", "sink")], lambda name, subtask: 2 if name == "sink" else 0)
        sink = cluster.attempt("sink")
        await cluster.until(lambda: cluster.has_ended(sink))
        assert "refused the connection: this slot belongs to job" in cluster.story.errors[sink].message

    in_slots(UNIX, body)


def test_a_stranger_on_the_data_port_is_turned_away():
    async def body(cluster: SlotCluster) -> None:
        address = cluster.slots[0].address
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\nAccept: */*\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), GIVE_UP_S)
        assert b"does not speak the exchange protocol" in answer
        writer.close()
        assert is_alive(cluster.slots[0].pid)

    in_slots(UNIX, body)


def test_ctrl_c_in_the_terminal_does_not_end_slots():
    async def body(cluster: SlotCluster) -> None:
        for pid in (cluster.slots[0].pid, cluster.slots[1].pid, cluster.zygote.pid):
            os.kill(pid, signal.SIGINT)
        await cluster.run([Vertex("src", [Numbers(10)]), Vertex("sink", [Collect()])], [Wire("src", "sink")])
        assert cluster.story.events[-1][1] == (0, list(range(10)))

    in_slots(UNIX, body)


def test_a_killed_zygote_takes_its_slots_along():
    def spin(row: int) -> None:
        while True:
            pass

    async def body(cluster: SlotCluster) -> None:
        cluster.deploy([Vertex("src", [Numbers(10), Apply(spin)])], [])
        await cluster.until(lambda: ExecutionState.RUNNING in cluster.story.states[cluster.attempt("src")])
        pids = [slot.pid for slot in cluster.slots]
        os.kill(cluster.zygote.pid, signal.SIGKILL)
        for pid in pids:
            await until_dead(pid)
        assert [await slot.wait() for slot in cluster.slots] == [-signal.SIGKILL] * 2
        with pytest.raises(ExternalError, match="is gone"):
            await cluster.add_slot(3, "127.0.0.1")

    in_slots(UNIX, body)


def test_a_slot_that_is_given_up_while_it_is_made_leaves_no_process_and_the_next_is_not_taken_for_it():
    async def body(cluster: SlotCluster) -> None:
        def children() -> set[int]:
            zygote = cluster.zygote.pid
            return set(map(int, Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()))

        for number, turns in enumerate((1, 2, 3, 5, 8, 50), 2):
            given_up = asyncio.ensure_future(cluster.add_slot(number, "127.0.0.1"))
            for _ in range(turns):
                await asyncio.sleep(0)
            given_up.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await given_up
            slot = await cluster.add_slot(number, "127.0.0.1")
            async with asyncio.timeout(GIVE_UP_S):
                while children() != {slot.pid for slot in cluster.slots}:
                    await asyncio.sleep(0.01)
            slot.kill()
            assert await slot.wait() == -signal.SIGKILL
            cluster.slots.remove(slot)

    in_slots(UNIX, body)


_PARENT = """
import asyncio, subprocess, sys
from tests.process.slot_cluster import SlotCluster, Vertex
from tests.process.slot_operators import Apply, Numbers

def spin(row):
    child = subprocess.Popen(["sleep", "1000"])
    with open(sys.argv[1] + ".part", "w") as out:
        out.write(str(child.pid))
    import os
    os.rename(sys.argv[1] + ".part", sys.argv[1])
    while True:
        pass

async def main():
    async with SlotCluster() as cluster:
        path = sys.argv[1]
        cluster.deploy([Vertex("src", [Numbers(10), Apply(spin)])], [])
        import os
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
        print(cluster.zygote.pid, *(slot.pid for slot in cluster.slots), open(path).read(), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def start_parent(tmp_path: Any) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a process with two slots, one of which spins; return it and the pids of zygote, slots, and a child."""
    env = {**os.environ, "TMPDIR": str(tmp_path.parent)}  # short, for a socket's path
    script = _PARENT.replace("sys.argv[1]", repr(str(tmp_path / "child")))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 4
    assert all(map(is_alive, pids))
    return parent, pids


def test_nothing_is_left_when_the_taskmanager_is_killed(tmp_path: Any):
    parent, pids = start_parent(tmp_path)
    with parent:
        parent.kill()
    for pid in pids:
        asyncio.run(until_dead(pid))


def test_a_zygote_ends_its_slots_when_the_taskmanager_dies_with_unread_messages():
    """A reset connection is an end like any other: what slots have started is ended by the zygote alone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "engine.runtime.taskmanager.zygote_process", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, stderr=subprocess.PIPE, text=True) as zygote:
        theirs.close()
        assert ours.recv(100, socket.MSG_PEEK) == b"ready"  # and leave it unread
        ours.close()
        _, complaints = zygote.communicate(timeout=120)
    assert (zygote.returncode, complaints) == (0, "")


def test_a_killed_zygote_takes_its_slots_along_though_nobody_looks(tmp_path: Any):
    parent, (zygote, first, second, child) = start_parent(tmp_path)
    with parent:
        os.kill(parent.pid, signal.SIGSTOP)
        os.kill(zygote, signal.SIGKILL)
        asyncio.run(until_dead(first))
        asyncio.run(until_dead(second))
        parent.kill()
    os.kill(child, signal.SIGKILL)  # its slot had no time to end it


def test_a_slot_that_cannot_bind_says_why():
    async def body(cluster: SlotCluster) -> None:
        with pytest.raises(ExternalError, match=r"Cannot bind the data port 192\.0\.2\.1"):
            await cluster.add_slot(5, "192.0.2.1")  # an address that no host has

    in_slots(UNIX, body)


def test_a_zygote_that_cannot_start_says_why(tmp_path: Any):
    async def run(python: str, output: str) -> None:
        with pytest.raises(ExternalError, match=r"did not come up|Cannot start"):
            await Zygote.start(python, {"PYTHONPATH": ROOT}, output, ["no_such_module_anywhere"])

    output = str(tmp_path / "out")
    asyncio.run(run(sys.executable, output))
    with open(output) as stream:
        assert "no_such_module_anywhere" in stream.read()
    asyncio.run(run("/no/such/python", output))


def test_a_module_that_takes_for_ever_to_load_delays_slots_for_a_while_only(tmp_path: Any):
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(600)\n")
    command = "import engine.runtime.taskmanager.zygote_process as z; z.LOAD_S_MAX = 0.2; z._load_ahead(['endless'])"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    subprocess.run([sys.executable, "-c", command], env=env, check=True, timeout=120)


def test_slots_share_no_socket_with_each_other():
    """Else the end of one would not be seen while another lives."""

    async def body(cluster: SlotCluster) -> None:
        for slot in cluster.slots:
            fds = [os.readlink(f"/proc/{slot.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{slot.pid}/fd")]
            # control, data by Unix path, data by TCP
            assert len([fd for fd in fds if fd.startswith("socket:")]) == 3, fds

    in_slots(UNIX, body)


@pytest.mark.parametrize("count", [5, ENDLESS], ids=["producer has ended", "producer runs"])
def test_a_record_that_cannot_be_pickled_is_an_error_of_the_user(count: int):
    async def body(cluster: SlotCluster) -> None:
        vertices = [Vertex("src", [Numbers(count, lambda i: (i, (x for x in "ab")))]), Vertex("sink", [Collect()])]
        cluster.deploy(vertices, [Wire("src", "sink")], sink_elsewhere)
        await cluster.until(lambda: bool(cluster.story.errors))
        (error,) = cluster.story.errors.values()
        assert "cannot pickle 'generator' object" in error.message
        assert "record: (0, <generator" in error.message
        assert error.domain == "user"

    in_slots(UNIX, body)


def test_what_a_user_function_starts_ends_with_the_slot(tmp_path: Any):
    path = str(tmp_path / "pid")

    def start(row: int) -> None:
        child = subprocess.Popen(["sleep", "1000"])
        with open(path, "w") as out:
            out.write(str(child.pid))

    async def body(cluster: SlotCluster) -> None:
        cluster.deploy([Vertex("src", [Numbers(1), Apply(start)])], [])
        await cluster.until(lambda: cluster.has_ended(cluster.attempt("src")))
        with open(path) as written:
            pid = int(written.read())
        assert is_alive(pid)
        cluster.slots[0].kill()
        await until_dead(pid)

    in_slots(UNIX, body)


def test_operators_that_cannot_be_loaded_say_what_to_ship():
    async def body(cluster: SlotCluster) -> None:
        deployment = cluster.deployment(Vertex("src", [Numbers(1)]))
        broken = dataclasses.replace(deployment, chain=b"cno_such_module_anywhere\nSpec\n.")
        cluster.slots[0].send(DeployTask(AllocationID.generate(), broken))
        await cluster.until(lambda: cluster.has_ended(broken.attempt_id))
        error = cluster.story.errors[broken.attempt_id]
        assert "No module named 'no_such_module_anywhere'" in error.message
        assert "-pyfs" in error.message
        assert error.domain == "user"

    in_slots(UNIX, body)


def test_a_fork_that_was_given_up_is_not_taken_for_the_next_one():
    """The host is so busy that the zygote does not answer before its TaskManager has another JobManager."""

    async def body(cluster: SlotCluster) -> None:
        os.kill(cluster.zygote.pid, signal.SIGSTOP)
        given_up = asyncio.ensure_future(cluster.add_slot(0, UNIX[0]))
        await asyncio.sleep(0.1)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        os.kill(cluster.zygote.pid, signal.SIGCONT)
        slot = await cluster.add_slot(1, UNIX[0])
        slot.kill()  # it has the right number: this slot ends, and no other
        assert await slot.wait() == -signal.SIGKILL
        assert await asyncio.wait_for(slot.receive(), GIVE_UP_S) is None

    in_slots((), body)


def test_an_idle_zygote_imports_what_may_come_later_and_compiles_nothing(tmp_path: Any):
    (tmp_path / "first.py").write_text("raise ImportError\n")
    (tmp_path / "second.py").write_text(
        f"""
from pathlib import Path
from engine.operators.warm_up import cached_code

def warm_up():
    (Path({str(tmp_path)!r}) / "seen").write_text(str(cached_code._forbidden))
"""
    )

    async def run() -> None:
        env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        zygote = await Zygote.start(sys.executable, env, str(tmp_path / "out"), [], ["first", "second"])
        assert not (tmp_path / "seen").exists()
        async with asyncio.timeout(GIVE_UP_S):
            while not (tmp_path / "seen").exists():
                await asyncio.sleep(0.05)
        await zygote.close()

    asyncio.run(run())
    assert (tmp_path / "seen").read_text() == "True"
