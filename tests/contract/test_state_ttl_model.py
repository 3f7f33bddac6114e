"""State that expires, against a model that keeps every value with the time of its last touch and looks when asked."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.state.descriptors import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.time.watermarks import Duration

TTL_MS = 10
KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.tuples(st.just("write"), KEYS, st.integers(0, 3))
    | st.tuples(st.just("read"), KEYS, st.integers(0, 3))
    | st.tuples(st.just("clear"), KEYS, st.integers(0, 3))
    | st.tuples(st.just("wait"), st.integers(1, 12))
    | st.just(("restart",)),
    max_size=30,
)


class Touched:
    """By key and name: [value, time of the last touch]. What has expired is gone for whoever asks."""

    def __init__(self, reads_prolong):
        self.reads_prolong = reads_prolong
        self.entries: dict[tuple, list] = {}

    def forget_expired(self, now):
        self.entries = {name: entry for name, entry in self.entries.items() if now < entry[1] + TTL_MS}

    def write(self, name, value, now):
        self.entries[name] = [value, now]

    def read(self, name, now):
        entry = self.entries.get(name)
        if entry is None:
            return None
        if self.reads_prolong:
            entry[1] = now
        return entry[0]


def played(backends, descriptor_of, steps, reads_prolong, write, read, clear):
    """``write``, ``read`` and ``clear`` do one thing to state and model; ``read`` compares them."""
    clock = ManualClock(1_000_000)
    config = StateTtlConfig.new_builder(Duration.of_millis(TTL_MS))
    config = (config.update_ttl_on_read_and_write() if reads_prolong else config).build()
    descriptor, of = descriptor_of
    descriptor.enable_time_to_live(config)
    backend = backends.make(clock)
    state, model = getattr(backend, of)(descriptor), Touched(reads_prolong)
    for step in steps:
        model.forget_expired(clock.now_ms())
        match step:
            case "wait", millis:
                clock.advance(millis)
            case ("restart",):
                backend = backends.restored(backend, clock)
                state = getattr(backend, of)(descriptor)
            case what, key, number:
                backend.set_current_key(key)
                {"write": write, "read": read, "clear": clear}[what](state, model, key, number, clock.now_ms())


def cells(steps, backends, reads_prolong):
    """A value, and a sum that begins anew when the one before has expired."""

    def write_value(state, model, key, number, now):
        state.update(number)
        model.write(key, number, now)

    def write_sum(state, model, key, number, now):
        state.add(number)
        before = model.entries.get(key)
        model.write(key, number if before is None else before[0] + number, now)

    def read_value(state, model, key, number, now):
        assert state.value() == model.read(key, now)

    def read_sum(state, model, key, number, now):
        assert state.get() == model.read(key, now)

    def clear(state, model, key, number, now):
        state.clear()
        model.entries.pop(key, None)

    value = ValueStateDescriptor("v"), "value_state"
    played(backends, value, steps, reads_prolong, write_value, read_value, clear)
    total = ReducingStateDescriptor("s", lambda a, b: a + b), "reducing_state"
    played(backends, total, steps, reads_prolong, write_sum, read_sum, clear)


def maps(steps, backends, reads_prolong):
    """Each entry expires by itself."""

    def write(state, model, key, number, now):
        state.put(number, number + now)
        model.write((key, number), number + now, now)

    def read(state, model, key, number, now):
        if number == 3:  # all of them
            found = {name: model.read((key, name), now) for own, name in list(model.entries) if own == key}
            assert dict(state.items()) == found
        else:
            assert state.get(number) == model.read((key, number), now)

    def clear(state, model, key, number, now):
        state.remove(number)
        model.entries.pop((key, number), None)

    played(backends, (MapStateDescriptor("m"), "map_state"), steps, reads_prolong, write, read, clear)


def lists(steps, backends, reads_prolong):
    """Each element expires by itself; they stay in their order."""
    counted = iter(range(10**6))

    def write(state, model, key, number, now):
        state.add(number)
        model.write((key, next(counted)), number, now)

    def read(state, model, key, number, now):
        assert list(state.get()) == [model.read(name, now) for name in list(model.entries) if name[0] == key]

    def clear(state, model, key, number, now):
        state.clear()
        model.entries = {name: entry for name, entry in model.entries.items() if name[0] != key}

    played(backends, (ListStateDescriptor("l"), "list_state"), steps, reads_prolong, write, read, clear)


@pytest.mark.parametrize("reads_prolong", [False, True], ids=["writes prolong", "reads prolong"])
@pytest.mark.parametrize("kind", [cells, maps, lists], ids=lambda kind: kind.__name__)
def test_what_is_seen_is_what_was_touched_not_too_long_ago(backends, kind, reads_prolong):
    num_examples = 40 if backends.is_in_memory else 8  # opening a database takes its time

    @settings(deadline=None, max_examples=num_examples, suppress_health_check=list(HealthCheck))
    @given(STEPS)
    def check(steps):
        kind(steps, backends, reads_prolong)

    check()
