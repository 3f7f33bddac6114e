"""Values that expire: what is seen when, and when memory is given back."""

from __future__ import annotations

import pytest

from engine.core.clock import ManualClock
from engine.core.errors import ProgramError
from engine.operators.functions import AggregateFunction
from engine.state.chunks import load_keyed
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.time.watermarks import Duration, Time

TEN = Duration.of_millis(10)


class Collected(AggregateFunction):
    def create_accumulator(self):
        return ()

    def add(self, value, accumulator):
        return (*accumulator, value)

    def get_result(self, accumulator):
        return accumulator

    def merge(self, acc_a, acc_b):
        return acc_a + acc_b


@pytest.fixture
def clock():
    return ManualClock(1_000_000)


@pytest.fixture
def backend(backends, clock):
    backend = backends.make(clock)
    backend.set_current_key("k")
    return backend


def with_ttl(descriptor, config=None):
    descriptor.enable_time_to_live(config or StateTtlConfig.new_builder(TEN).build())
    return descriptor


def test_a_value_is_gone_when_its_time_has_come_and_a_write_prolongs_it(backend, clock):
    state = backend.value_state(with_ttl(ValueStateDescriptor("v")))
    state.update(1)
    clock.advance(9)
    assert state.value() == 1
    state.update(2)
    clock.advance(9)
    assert state.value() == 2
    clock.advance(1)
    assert state.value() is None
    assert list(backend.keys("v")) == []


def test_a_read_prolongs_only_when_asked_to(backend, clock):
    config = StateTtlConfig.new_builder(TEN).update_ttl_on_read_and_write().build()
    state = backend.value_state(with_ttl(ValueStateDescriptor("v"), config))
    entries = backend.map_state(with_ttl(MapStateDescriptor("m"), config))
    elements = backend.list_state(with_ttl(ListStateDescriptor("l"), config))
    state.update(1)
    entries.put("x", 1)
    elements.add(1)
    for _ in range(5):
        clock.advance(6)
        assert (state.value(), entries.get("x"), elements.get()) == (1, 1, [1])
    clock.advance(10)
    assert (state.value(), entries.get("x"), elements.get()) == (None, None, [])


def test_expired_values_may_be_seen_until_they_are_cleaned_up_if_the_program_wants(backend, clock):
    builder = StateTtlConfig.new_builder(TEN).return_expired_if_not_cleaned_up()
    state = backend.value_state(with_ttl(ValueStateDescriptor("v"), builder.disable_cleanup_in_background().build()))
    state.update(1)
    clock.advance(50)
    assert state.value() == 1  # this read cleans it up
    assert state.value() is None


def test_reducing_and_aggregating_state_begin_anew_after_expiry(backend, clock):
    total = backend.reducing_state(with_ttl(ReducingStateDescriptor("sum", lambda a, b: a + b)))
    seen = backend.aggregating_state(with_ttl(AggregatingStateDescriptor("seen", Collected())))
    for value in (1, 2):
        total.add(value)
        seen.add(value)
    assert (total.get(), seen.get()) == (3, (1, 2))
    clock.advance(10)
    assert (total.get(), seen.get()) == (None, None)
    total.add(5)
    seen.add(5)
    assert (total.get(), seen.get()) == (5, (5,))


def test_list_elements_expire_one_by_one(backend, clock):
    state = backend.list_state(with_ttl(ListStateDescriptor("l")))
    state.add("old")
    clock.advance(6)
    state.add("new")
    clock.advance(6)
    assert state.get() == ["new"]
    state.add("newer")
    clock.advance(6)
    state.add("newest")
    assert state.get() == ["newer", "newest"]
    clock.advance(10)
    assert state.get() == []
    assert list(backend.keys("l")) == []


def test_map_entries_expire_one_by_one(backend, clock):
    state = backend.map_state(with_ttl(MapStateDescriptor("m")))
    state.put("old", 1)
    clock.advance(6)
    state.put("new", 2)
    clock.advance(6)
    assert (state.get("old"), "old" in state) == (None, False)
    assert state.items() == [("new", 2)]
    clock.advance(6)
    assert state.is_empty()
    assert list(backend.keys("m")) == []


def test_a_map_that_is_only_written_does_not_grow_for_ever(backends, backend, clock):
    state = backend.map_state(with_ttl(MapStateDescriptor("m")))
    for number in range(1000):
        state.put(number, 1)
        clock.advance(1)
    if backends.is_in_memory:
        assert len(backend._tables["m"].spaces[None]["k"]) < 20
    (chunk,) = backends.snapshot(backend).values()
    ((_, _, (cell,)),) = load_keyed(chunk, "state")["m"].entries
    assert len(cell) <= 10


def test_keys_that_never_come_again_are_cleaned_up_by_the_traffic_of_others(backends, backend, clock):
    state = backend.value_state(with_ttl(ValueStateDescriptor("v")))
    for number in range(1000):
        backend.set_current_key(number)
        state.update(1)
        clock.advance(1)
    # rocksdb goes round through all rows, so it comes to one some writes after it has expired
    assert len(list(backend.keys("v"))) <= (11 if backends.is_in_memory else 20)


def test_cleanup_for_every_record_needs_no_access_to_the_state(backends, backend, clock):
    if not backends.is_in_memory:
        pytest.skip("rocksdb looks for expired rows when it writes")
    config = StateTtlConfig.new_builder(TEN).cleanup_incrementally(2, True).build()
    state = backend.value_state(with_ttl(ValueStateDescriptor("v"), config))
    for number in range(10):
        backend.set_current_key(number)
        state.update(1)
    clock.advance(10)
    for remaining in (8, 6, 4):
        backend.set_current_key("any")
        assert len(list(backend.keys("v"))) == remaining


def test_a_key_that_is_written_all_the_time_does_not_hide_the_expired_ones_behind_it(backend, clock):
    state = backend.value_state(with_ttl(ValueStateDescriptor("v")))
    for number in range(100):
        backend.set_current_key("busy")
        state.update(1)
        backend.set_current_key(number)
        state.update(1)
        clock.advance(1)
    assert len(list(backend.keys("v"))) <= 12


@pytest.mark.parametrize(("shows_expired", "full_snapshot", "kept"), [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1)])
def test_a_snapshot_leaves_out_what_nobody_may_see_any_more(
    backends, backend, clock, shows_expired, full_snapshot, kept
):
    builder = StateTtlConfig.new_builder(TEN).disable_cleanup_in_background()
    if shows_expired:
        builder.return_expired_if_not_cleaned_up()
    if full_snapshot:
        builder.cleanup_full_snapshot()
    backend.value_state(with_ttl(ValueStateDescriptor("v"), builder.build())).update(1)
    clock.advance(10)
    assert len(backends.snapshot(backend, range(128))) == kept


def test_without_background_cleanup_what_nobody_reads_stays_in_memory_but_not_in_snapshots(backends, backend, clock):
    config = StateTtlConfig.new_builder(TEN).disable_cleanup_in_background().cleanup_full_snapshot().build()
    states = [
        backend.value_state(with_ttl(ValueStateDescriptor("v"), config)),
        backend.list_state(with_ttl(ListStateDescriptor("l"), config)),
        backend.map_state(with_ttl(MapStateDescriptor("m"), config)),
    ]
    for key in ("old", "new"):
        clock.advance(6)
        backend.set_current_key(key)
        states[0].update(key)
        states[1].add(key)
        states[2].put(key, 1)
    clock.advance(6)
    assert [list(backend.keys(name)) for name in "vlm"] == [["old", "new"]] * 3
    restored = backends.restored(backend, clock)
    assert [list(restored.keys(name)) for name in "vlm"] == [["new"]] * 3


def test_restored_values_keep_their_age(backends, backend, clock):
    descriptors = [with_ttl(ValueStateDescriptor("v")), with_ttl(MapStateDescriptor("m"))]
    backend.value_state(descriptors[0]).update(1)
    backend.map_state(descriptors[1]).put("x", 1)
    clock.advance(6)
    restored = backends.restored(backend, clock)
    value, entries = restored.value_state(descriptors[0]), restored.map_state(descriptors[1])
    restored.set_current_key("k")
    assert (value.value(), entries["x"]) == (1, 1)
    entries.put("y", 2)
    clock.advance(4)
    assert (value.value(), entries.items()) == (None, [("y", 2)])


@pytest.mark.parametrize("had_ttl", [True, False])
def test_time_to_live_may_be_added_and_dropped_between_versions_of_a_program(backends, backend, clock, had_ttl):
    def descriptors(has_ttl):
        plain = ValueStateDescriptor("v"), ListStateDescriptor("l"), MapStateDescriptor("m")
        return [with_ttl(descriptor) if has_ttl else descriptor for descriptor in plain]

    def states(of, has_ttl):
        v, l, m = descriptors(has_ttl)
        return of.value_state(v), of.list_state(l), of.map_state(m)

    value, elements, entries = states(backend, had_ttl)
    value.update(1)
    elements.add_all([1, 2])
    entries.put("x", 3)
    restored = backends.restored(backend, clock)
    restored.set_current_key("k")
    clock.advance(6)
    value, elements, entries = states(restored, not had_ttl)
    clock.advance(6)
    assert (value.value(), elements.get(), entries.items()) == (1, [1, 2], [("x", 3)])
    clock.advance(4)
    assert value.value() == (1 if had_ttl else None)


def test_one_state_cannot_be_used_with_and_without_time_to_live(backend):
    backend.value_state(with_ttl(ValueStateDescriptor("v")))
    with pytest.raises(ProgramError, match="'v' is used with and without a time to live"):
        backend.value_state(ValueStateDescriptor("v"))


def test_the_builder_has_the_methods_of_pyflink_and_refuses_nonsense():
    config = (
        StateTtlConfig.new_builder(Time.seconds(1))
        .set_update_type(StateTtlConfig.UpdateType.OnReadAndWrite)
        .set_state_visibility(StateTtlConfig.StateVisibility.ReturnExpiredIfNotCleanedUp)
        .set_ttl_time_characteristic(StateTtlConfig.TtlTimeCharacteristic.ProcessingTime)
        .cleanup_in_rocksdb_compact_filter(1000)
        .cleanup_full_snapshot()
        .build()
    )
    assert config.get_ttl() == Time.seconds(1)
    assert config.get_update_type() is StateTtlConfig.UpdateType.OnReadAndWrite
    assert config.get_cleanup_strategies().in_full_snapshot()
    strategy = config.get_cleanup_strategies().get_rocksdb_compact_filter_cleanup_strategy()
    assert (strategy.get_query_time_after_num_entries(), strategy.get_periodic_compaction_time()) == (
        1000,
        Duration.of_days(30),
    )
    told = StateTtlConfig.new_builder(Time.days(1)).disable_cleanup_in_background()
    assert told.build().get_cleanup_strategies().get_rocksdb_compact_filter_cleanup_strategy() is None
    told.cleanup_in_rocksdb_compact_filter(17, Duration.of_hours(1))
    strategy = told.build().get_cleanup_strategies().get_rocksdb_compact_filter_cleanup_strategy()
    assert (strategy.get_query_time_after_num_entries(), strategy.get_periodic_compaction_time()) == (
        17,
        Duration.of_hours(1),
    )
    assert config.is_enabled()
    with pytest.raises(ProgramError, match="expected a Duration above zero"):
        StateTtlConfig.new_builder(Duration.of_millis(0))
    with pytest.raises(ProgramError, match="expected a StateTtlConfig"):
        ValueStateDescriptor("v").enable_time_to_live(Duration.of_seconds(1))
    disabled = StateTtlConfig.new_builder(TEN).set_update_type(StateTtlConfig.UpdateType.Disabled).build()
    descriptor = with_ttl(ValueStateDescriptor("v"), disabled)
    assert descriptor.ttl_config is None
