"""How long a cluster is without a leader, and what a fenced write costs: ``python -m tests.bench.election [-n 5]``.

Starts a ZooKeeper of its own, unless it is ``--only filesystem``. A leader is killed with -9; the time runs until the
next one's first write has come back. A leader that leaves by itself is followed at once. Not here: how long a job takes
to go on (``recovery``).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.stats import record
from tests.contract.test_ha import FileBackend
from tests.hadoop.conftest import running_cluster
from tests.hadoop.test_zookeeper import ZooKeeperBackend
from tests.testing.ha_contract import HaBackend, cluster_of, processes

NUM_WRITES = 500


def time_of_election(backend: HaBackend) -> float:
    """Return seconds from kill -9 of the leader to the next one's first write."""
    with processes(backend) as start:
        first = start()
        first.wait_for("wrote")
        second = start()
        second.wait_for("joined")
        time.sleep(1.0)
        killed_s = time.monotonic()
        first.send(signal.SIGKILL)
        return second.wait_for("wrote") - killed_s


def times_of_writes(backend: HaBackend) -> list[float]:
    """Return the seconds that each of many small writes took, sorted."""
    times: list[float] = []

    async def play() -> None:
        async with cluster_of(backend) as cluster:
            contender, token = await cluster.leader()

            def write() -> None:
                for number in range(NUM_WRITES):
                    began_s = time.perf_counter()
                    cluster.metadata(contender).put(token, "jobs/x/checkpoints", b"%0200d" % number)
                    times.append(time.perf_counter() - began_s)

            await asyncio.to_thread(write)

    asyncio.run(play())
    return sorted(times)


def report(name: str, backend: HaBackend, repeats: int) -> None:
    elections = [time_of_election(backend) for _ in range(repeats)]
    writes = times_of_writes(backend)
    median_s = statistics.median(elections)
    record({"name": name, "election_s": median_s, "worst_s": max(elections), "write_s": writes[NUM_WRITES // 2]})
    print(
        f"{name}: election after kill -9 {min(elections):.2f} to {max(elections):.2f} s "
        f"(median {median_s:.2f}, n={repeats}); fenced write median "
        f"{writes[NUM_WRITES // 2] * 1000:.2f} ms, 99 % {writes[NUM_WRITES * 99 // 100] * 1000:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-n", type=int, default=5, help="elections of each kind")
    parser.add_argument("--only", choices=["filesystem"], help="without ZooKeeper")
    options = parser.parse_args()
    repeats = options.n
    with tempfile.TemporaryDirectory() as folder:
        report("filesystem", FileBackend(Path(folder) / "files"), repeats)
        for servers in () if options.only else (1, 3):
            with running_cluster("--only-zookeeper", "--zookeeper", str(servers)) as zookeepers:
                for session_s in (2, 4):
                    backend = ZooKeeperBackend(zookeepers.zookeeper, Path(folder) / f"{servers}-{session_s}")
                    backend.config["high-availability.zookeeper.client.session-timeout"] = f"{session_s} s"
                    report(f"ZooKeeper of {servers}, session {session_s} s", backend, repeats)


if __name__ == "__main__":
    main()
