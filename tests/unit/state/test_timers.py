"""Timers fire once, in order of time, whatever was registered, deleted and restored in between."""

from __future__ import annotations

import itertools
import math
import random

from hypothesis import given
from hypothesis import strategies as st

from engine.state.key_groups import NAN, key_group_of
from engine.state.timers import NO_WATERMARK_MS, TimerService

GROUPS = range(128)


def test_event_timers_fire_in_order_of_time_and_those_of_one_time_in_order_of_registration():
    timers = TimerService(128)
    for key, time_ms in (("b", 7), ("a", 7), ("c", -3), ("late", 11)):
        timers.register_event_time(key, None, time_ms)
    assert list(timers.advance_watermark(10)) == [(-3, "c", None), (7, "b", None), (7, "a", None)]
    assert timers.next_event_ms() == 11


def test_a_timer_registered_twice_fires_once_but_namespaces_and_domains_are_apart():
    timers = TimerService(128)
    for _ in range(3):
        timers.register_event_time("k", None, 5)
        timers.register_event_time("k", "window", 5)
        timers.register_processing_time("k", None, 5)
    assert list(timers.advance_watermark(5)) == [(5, "k", None), (5, "k", "window")]
    assert list(timers.due_processing(5)) == [(5, "k", None)]
    assert timers.num_timers() == 0


def test_a_deleted_timer_does_not_fire_and_may_be_registered_again():
    timers = TimerService(128)
    timers.register_processing_time("k", None, 5)
    timers.delete_processing_time("k", None, 5)
    timers.delete_processing_time("never there", None, 5)
    assert timers.next_processing_ms() is None
    timers.register_processing_time("k", None, 5)
    assert list(timers.due_processing(5)) == [(5, "k", None)]


def test_what_is_registered_while_timers_fire_fires_too_when_it_is_due():
    timers = TimerService(128)
    timers.register_event_time("k", None, 1)
    fired = []
    for time_ms, key, namespace in timers.advance_watermark(10):
        fired.append(time_ms)
        timers.register_event_time(key, namespace, time_ms + 4)
    assert fired == [1, 5, 9]
    assert timers.next_event_ms() == 13


def test_the_watermark_is_set_before_the_first_timer_fires_and_never_goes_back():
    timers = TimerService(128)
    assert timers.current_watermark == NO_WATERMARK_MS
    timers.register_event_time("k", None, 1)
    for _ in timers.advance_watermark(10):
        assert timers.current_watermark == 10
    list(timers.advance_watermark(4))
    assert timers.current_watermark == 10


def test_deleted_timers_far_in_the_future_do_not_pile_up():
    timers = TimerService(128)
    for time_ms in range(20_000):  # a session timeout that every record puts off
        timers.register_event_time("k", None, 10**9 + time_ms)
        timers.delete_event_time("k", None, 10**9 + time_ms - 1)
    assert len(timers._event_time._heap) < 1000
    assert timers.num_timers() == 1


def test_a_snapshot_splits_timers_by_key_group_and_nan_stays_one_key():
    timers = TimerService(128)
    keys = ["a", "b", 3, (1, "x"), NAN]
    for key in keys:
        timers.register_event_time(key, None, 5)
        timers.register_processing_time(key, "ns", 6)
    chunks = timers.snapshot(GROUPS)
    assert set(chunks) == {key_group_of(key, 128) for key in keys}
    half = {group: chunk for group, chunk in chunks.items() if group < 64}
    rest = {group: chunk for group, chunk in chunks.items() if group >= 64}
    restored = TimerService(128)
    restored.restore(half)
    restored.restore(rest)
    restored.register_event_time(NAN, None, 5)  # coalesces with the restored one
    assert restored.num_timers() == 2 * len(keys)
    assert sum(isinstance(key, float) and math.isnan(key) for _, key, _ in restored.advance_watermark(5)) == 1
    assert timers.snapshot(range(0)) == {}


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["register", "delete", "advance"]), st.sampled_from("abc"), st.integers(-20, 20)),
    max_size=60,
)


@given(OPERATIONS)
def test_timers_behave_as_a_set_that_is_sorted_when_time_advances(operations):
    timers, model = TimerService(128), set()
    for what, key, time_ms in operations:
        if what == "register":
            timers.register_event_time(key, None, time_ms)
            model.add((time_ms, key))
        elif what == "delete":
            timers.delete_event_time(key, None, time_ms)
            model.discard((time_ms, key))
        else:
            fired = [(at, key) for at, key, _ in timers.advance_watermark(time_ms)]
            due = {timer for timer in model if timer[0] <= time_ms}
            assert set(fired) == due
            assert len(fired) == len(due)
            assert [at for at, _ in fired] == sorted(at for at, _ in due)
            model -= due
        assert timers.next_event_ms() == min((at for at, _ in model), default=None)


def test_many_timers_fire_as_a_sorted_set_though_the_program_registers_and_deletes_meanwhile():
    """So many that what is due is taken off at once: what comes and goes while they fire has its place among them."""
    rng = random.Random(5)
    for _ in range(10):
        timers, model, order = TimerService(128), {}, itertools.count()

        def register(key, time_ms, timers=timers, model=model, order=order):
            timers.register_event_time(key, None, time_ms)
            model.setdefault((time_ms, key), next(order))

        def delete(key, time_ms, timers=timers, model=model):
            timers.delete_event_time(key, None, time_ms)
            model.pop((time_ms, key), None)

        for _ in range(600):
            register(rng.randrange(5), rng.randrange(150))
        for until in (40, 41, 120, 149):
            for time_ms, key, _ in timers.advance_watermark(until):
                first = min((timer for timer in model if timer[0] <= until), key=lambda timer: (timer[0], model[timer]))
                assert (time_ms, key) == first
                del model[first]
                if rng.random() < 0.3:
                    register(rng.randrange(5, 10), rng.randrange(time_ms, 160))
                if rng.random() < 0.3:
                    delete(rng.randrange(10), rng.randrange(time_ms, 160))
            assert not [timer for timer in model if timer[0] <= until]
            assert timers.num_timers() == len(model)


def test_timers_that_were_due_when_a_pass_was_given_up_fire_in_the_next_one():
    timers = TimerService(128)
    for time_ms in range(1000):
        timers.register_event_time("k", None, time_ms)
    first = list(itertools.islice(timers.advance_watermark(900), 500))
    assert [at for at, _, _ in first] == list(range(500))
    assert timers.next_event_ms() == 500
    assert [at for at, _, _ in timers.advance_watermark(900)] == list(range(500, 901))
    assert timers.num_timers() == 99
