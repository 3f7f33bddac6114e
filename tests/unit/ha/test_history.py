"""What leaders leave for people to read: bounded, fenced, and never in the way of what matters."""

from __future__ import annotations

import asyncio
import logging

import pytest

from engine.core.ids import FencingToken, JobID, ResourceID
from engine.graph.execution_graph import ExceptionEntry
from engine.ha import history
from engine.ha.contracts import VALUE_BYTES_MAX, LeadershipLostError
from engine.ha.history import LEADERS_MAX, LeaderHistory, LeaderRecord
from engine.ha.memory import MemoryCluster, MemoryServices
from engine.protocol.control import ErrorInfo
from tests.unit.ha.test_job_store import Contender

JOB = JobID("a" * 32)


@pytest.fixture
def cluster(tmp_path) -> MemoryCluster:
    return MemoryCluster(f"file://{tmp_path}/ha")


def next_leader(cluster: MemoryCluster) -> tuple[LeaderHistory, FencingToken]:
    services, contender = MemoryServices(cluster), Contender()
    for old in list(cluster._contenders):
        asyncio.run(old.close())
    asyncio.run(services.election().start(contender))
    return LeaderHistory(services.metadata(), contender.token), contender.token


def entry(number: int, size: int = 0) -> ExceptionEntry:
    error = ErrorInfo("ValueError", f"number {number}", "x" * size, "user")
    return ExceptionEntry(error, number, "map (1/2)", "host:4001", ResourceID("container_1"), "http://nm/logs")


def record(token: FencingToken, since_ms: int) -> LeaderRecord:
    return LeaderRecord(token, f"http://host:{since_ms}", since_ms)


def test_a_leader_that_says_when_it_ends_and_one_that_does_not_are_told_apart(cluster):
    first, token = next_leader(cluster)
    assert first.begin(record(token, 10)) == [record(token, 10)]
    first.end(19, "It was told to end.")
    second, token = next_leader(cluster)
    second.begin(record(token, 20))
    third, token = next_leader(cluster)
    found = third.begin(record(token, 30))
    assert [(one.since_ms, one.until_ms) for one in found] == [(10, 19), (20, 30), (30, 0)]
    assert [one.why_ended for one in found] == [
        "It was told to end.",
        "It ended without a word: killed, cut off, or its host was lost.",
        "",
    ]
    assert third.leaders() == found


def test_what_is_known_of_the_end_of_the_one_before_is_noted_and_only_of_that_one(cluster):
    for number in range(3):
        leader, token = next_leader(cluster)
        found = leader.begin(record(token, number), "ended by SIGKILL" if number == 1 else "")
    assert [one.why_ended[:16] for one in found] == ["ended by SIGKILL", "It ended without", ""]


def test_the_last_leaders_are_kept(cluster):
    for number in range(LEADERS_MAX + 5):
        leader, token = next_leader(cluster)
        found = leader.begin(record(token, number))
    assert [one.since_ms for one in found] == list(range(5, LEADERS_MAX + 5))


def test_the_next_leader_reads_the_exceptions_of_before(cluster):
    first, _ = next_leader(cluster)
    first.put_exceptions(JOB, [entry(1), entry(2)])
    second, _ = next_leader(cluster)
    assert second.exceptions(JOB) == [entry(1), entry(2)]
    assert second.exceptions(JobID("b" * 32)) == []


def test_exceptions_that_are_too_large_lose_the_middle_and_then_the_oldest(cluster):
    leader, _ = next_leader(cluster)
    leader.put_exceptions(JOB, [entry(number, 100_000) for number in range(60)])
    found = leader.exceptions(JOB)
    assert len(next(iter(cluster.values.values()))) <= VALUE_BYTES_MAX
    assert found[-1].error.message == "number 59"
    assert 10 < len(found) < 60
    assert len(found[-1].error.trace) < 8100


def test_a_deposed_leader_writes_nothing(cluster):
    old, token = next_leader(cluster)
    new, new_token = next_leader(cluster)
    new.begin(record(new_token, 5))
    before = dict(cluster.values)
    for write in (
        lambda: old.begin(record(token, 1)),
        lambda: old.put_exceptions(JOB, [entry(1)]),
    ):
        with pytest.raises(LeadershipLostError):
            write()
    old.end(7, "late")  # it sees that another one leads
    assert cluster.values == before


def test_histories_of_jobs_that_nobody_knows_are_dropped(cluster, monkeypatch):
    monkeypatch.setattr(history, "JOBS_MAX", 3)
    leader, token = next_leader(cluster)
    jobs = [JobID(digit * 32) for digit in "12345"]
    metadata = leader._metadata
    metadata.put(token, f"results/{jobs[1]}", b"{}")
    for job_id in jobs:
        leader.put_exceptions(job_id, [entry(1)])
    assert metadata.list("history") == [jobs[1], jobs[3], jobs[4]]


@pytest.mark.parametrize("value", [b"not json", b"{}", b'[{"error": 3}]', b'[7, {"nothing": 1}]'])
def test_what_cannot_be_understood_is_left_out(cluster, value, caplog):
    leader, token = next_leader(cluster)
    leader._metadata.put(token, f"history/{JOB}", value)
    leader._metadata.put(token, "leaders", value)
    with caplog.at_level(logging.WARNING):
        assert leader.exceptions(JOB) == leader.leaders() == []
