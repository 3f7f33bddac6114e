"""The timeline of faults: what overlaps, what is mended, what a seed fixes."""

from __future__ import annotations

import pytest

from tests.chaos.plan import ACTIVE_MAX, FAULTS, MASTER_REST_S, timeline


def test_a_seed_fixes_the_timeline():
    assert list(timeline(7, 600)) == list(timeline(7, 600))
    assert list(timeline(7, 600)) != list(timeline(8, 600))


@pytest.mark.parametrize("seed", range(50))
def test_faults_that_touch_the_same_do_not_overlap_and_all_is_mended(seed):
    active, now_s, master_free_s = {}, 0.0, 0.0
    for step in timeline(seed, 600):
        assert step.at_s >= now_s
        now_s, fault = step.at_s, step.strike.fault
        if step.mends:
            del active[step.strike]
            continue
        assert not fault.touches & {thing for other in active for thing in other.fault.touches}
        if "master" in fault.touches:
            assert now_s >= master_free_s
            master_free_s = now_s + MASTER_REST_S
        if fault.lasts_s[1] > 0:
            active[step.strike] = now_s
        assert len(active) <= ACTIVE_MAX
    assert not active


def test_an_hour_has_all_kinds_of_fault():
    seen = [step.strike.fault.name for step in timeline(1, 3600) if not step.mends]
    assert set(seen) == {fault.name for fault in FAULTS}
    assert len(seen) > 300
