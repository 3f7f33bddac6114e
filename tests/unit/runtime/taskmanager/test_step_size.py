"""Steps grow for fast functions and shrink for slow ones."""

from __future__ import annotations

import pytest

from engine.core.records import BATCH_ROWS_MAX
from engine.runtime.exchange.partition import QUEUE_BUFFERS_MAX
from engine.runtime.taskmanager.step_size import StepSize

MS = 1_000_000


def test_it_begins_with_one_record():
    assert StepSize().rows_max == 1


def test_a_fast_function_soon_gets_large_batches():
    size, steps = StepSize(), 0
    while size.rows_max < BATCH_ROWS_MAX:
        size.observe(size.rows_max, 200 * size.rows_max)  # 200 ns a record
        steps += 1
    assert steps < 10


@pytest.mark.parametrize("record_ms", [5, 6, 12, 100])
def test_a_function_that_is_slow_for_each_record_gets_single_ones_but_for_trials(record_ms):
    size, sizes = StepSize(), []
    for _ in range(100):
        sizes.append(size.rows_max)
        size.observe(size.rows_max, size.rows_max * record_ms * MS)
    assert max(sizes) == 2
    assert sizes.count(2) <= 4


@pytest.mark.parametrize("call_ms", [2, 5, 12, 100, 900])
def test_what_a_call_costs_however_few_its_records_leads_to_large_batches(call_ms):
    size, sizes = StepSize(), []
    for _ in range(300):
        sizes.append(size.rows_max)
        size.observe(size.rows_max, call_ms * MS + 10 * size.rows_max)
    assert BATCH_ROWS_MAX in sizes[:12]
    assert sum(sizes[12:]) > 0.8 * 288 * BATCH_ROWS_MAX


def test_the_records_of_a_step_take_about_as_long_as_its_fixed_cost():
    size, sizes = StepSize(), []
    for _ in range(300):
        sizes.append(size.rows_max)
        size.observe(size.rows_max, 20 * MS + size.rows_max * MS)
    assert 8 <= sorted(sizes)[150] <= 40  # one record a step: 48 records a second instead of 300


def test_a_step_that_was_held_up_does_not_make_records_pass_for_free():
    size = StepSize()
    size.observe(1, 60 * MS)
    for _ in range(300):
        size.observe(size.rows_max, size.rows_max * 10_000)
    size.observe(size.rows_max, 50 * MS)
    size.observe(size.rows_max, 50 * MS)
    for _ in range(100):
        size.observe(size.rows_max, size.rows_max * 10_000)
    assert 2 * MS <= size.rows_max * 10_000 <= 10 * MS


def test_no_trial_is_made_of_records_that_take_more_than_a_second():
    size = StepSize()
    for _ in range(100):
        size.observe(1, 1100 * MS)
        assert size.rows_max == 1


def test_a_function_that_becomes_slow_shrinks_the_step_at_once():
    size = StepSize()
    size.rows_max = 4096
    size.observe(4096, 4096 * MS)
    assert size.rows_max == 5


def test_steps_settle_between_2_and_10_ms():
    size = StepSize()
    for _ in range(20):
        size.observe(size.rows_max, size.rows_max * 10_000)  # 10 µs a record
    assert 2 * MS <= size.rows_max * 10_000 <= 10 * MS


def test_small_batches_say_nothing_about_large_ones():
    size = StepSize()
    size.rows_max = 1000
    size.observe(10, 1000)
    size.observe(0, 0)
    assert size.rows_max == 1000


class Queue:
    """Stands for a partition: how many full buffers wait in it."""

    def __init__(self) -> None:
        self.waiting = 0

    def num_waiting(self) -> int:
        return self.waiting


def test_a_step_of_large_records_fills_no_more_buffers_than_may_wait():
    queue = Queue()
    size = StepSize([queue])
    most = 0
    for _ in range(20):
        queue.waiting = 3
        size.begin()
        filled = size.rows_max // 16  # 16 records a buffer
        queue.waiting += filled
        size.observe(size.rows_max, 100 * size.rows_max)
        most = max(most, filled)
    assert most <= QUEUE_BUFFERS_MAX
    assert size.rows_max > 16


def test_records_that_become_large_shrink_the_step_also_when_it_waited_meanwhile():
    queue = Queue()
    size = StepSize([queue])
    size.rows_max = 4096
    size.begin()
    queue.waiting = 4 * QUEUE_BUFFERS_MAX
    size.look()
    queue.waiting = 0
    size.observe(4096, 1 * MS)
    assert size.rows_max == 1024


def test_the_small_rest_of_a_batch_goes_along_with_the_step_before_it():
    size = StepSize()
    size.rows_max = 100
    assert size.end_of(0, 90) == 90
    assert size.end_of(0, 125) == 125
    assert size.end_of(0, 126) == 100
    assert size.end_of(100, 126) == 126
    size.rows_max = 1
    assert size.end_of(0, 2) == 1
