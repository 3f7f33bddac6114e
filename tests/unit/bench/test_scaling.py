"""What scaling runs at each point of a curve, and what it compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import scaling
from tests.bench.keyed import Sample


@pytest.fixture
def jobs(monkeypatch) -> list[tuple[str, int, int, tuple[str, ...]]]:
    """Jobs that take a second for each million of events, shared by their slots; (program, keys, slots, options)."""
    taken: list[tuple[str, int, int, tuple[str, ...]]] = []

    def job_of(scaled, cache, timeout_s):
        def job(size, slots, options):
            taken.append((scaled.program, scaled.keys, slots, (*scaled.options, *options)))
            return Sample(size / 1e6, size / 1e6 / slots, 1.0, 1.0, 100.0)

        return job

    monkeypatch.setattr(scaling, "job_of", job_of)
    monkeypatch.setattr(scaling, "flinks_job", lambda flink, timeout_s: job_of(scaling.Scaled("flink", 1), None, 0.0))
    return taken


def measured(curves, **more):
    return scaling.scaling(curves, events=4_000_000, runs=2, timeout_s=1, cache=Path(), **more)


def test_slots_are_compared_for_each_workload_and_flinks_for_the_keyed_sum(jobs):
    rows = measured(["slots"], workloads=["window-join", "keyed-sum"], flink=object())
    assert [(row["of"], row["contender"], row["slots"]) for row in rows] == [
        *(("window-join", "engine", slots) for slots in (1, 2)),
        *(("keyed-sum", "engine", slots) for slots in (1, 2)),
        *(("keyed-sum", "flink-java", slots) for slots in (1, 2)),
    ]
    assert {tuple(row["ratio_to_first_wall"]) for row in rows if row["slots"] == 2} == {(2, 2, 2)}
    assert {tuple(row["ratio_to_first_cpu"]) for row in rows} == {(1, 1, 1)}
    assert jobs[:4] == [("joins", 1_000_000, slots, ("join=window",)) for slots in (1, 2)] * 2


def test_the_ceiling_is_two_jobs_of_one_slot_at_once(jobs):
    one, two = measured(["ceiling"])
    assert [job[2] for job in jobs] == [1, 1, 1] * 2
    assert (one["peak_mb"], two["peak_mb"]) == (100, 200)
    assert two["ratio_to_first_wall"][1] == 2, "each of these takes as long as alone, so both do twice as much"


def test_channels_and_keys_are_of_the_keyed_sum(jobs):
    measured(["channels", "keys"], workloads=["window"], channels=(2, 8))
    assert jobs[:2] == [("keyed_sum", 100_000, 2, (f"sources={sources}",)) for sources in (1, 4)]
    assert [job[1] for job in jobs[4:]] == [*scaling.KEYS] * 2
