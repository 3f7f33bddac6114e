"""Programs whose records are dataclass objects: columns between operators, objects wherever Python code sees them."""

from __future__ import annotations

import dataclasses

import pytest

from engine.common import Time, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.window import EventTimeSessionWindows, TumblingEventTimeWindows

TYPED = Types.ROW_NAMED(["k", "v", "ts"], [Types.LONG(), Types.DOUBLE(), Types.LONG()])
TIMES = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
COMPILED = "compiled on columns, else interpreted"


@dataclasses.dataclass(frozen=True)
class Order:
    key: int
    price: float
    name: str = "x"


def order_of(r) -> Order:
    return Order(r.k % 5, r.v * 2)


def both(a: Order, b: Order) -> Order:
    return Order(a.key, a.price + b.price, b.name)


def is_dear(o: Order) -> bool:
    return o.price > 20


@pytest.fixture
def env():
    environment = StreamExecutionEnvironment.create_local_environment(2)
    environment.set_parallelism(2)
    return environment


def orders(env, is_columns):
    if is_columns:
        source = DataGeneratorSource.of_columns(lambda i: (i % 7, i / 2, i * 100), 100, TYPED)
        stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "gen").set_parallelism(1)
    else:
        stream = env.from_collection([(i % 7, i / 2, i * 100) for i in range(100)], TYPED)
    return stream.assign_timestamps_and_watermarks(TIMES).set_parallelism(1).map(order_of).set_parallelism(1)


def tiers(stream):
    stream.sink_to(DiscardingSink())
    graph, _ = stream.get_execution_environment()._build("plan")
    return {info.name.removeprefix("Sink: "): info.tier for vertex in graph.vertices for info in vertex.operators}


def test_the_plan_says_what_takes_columns_of_objects(env):
    stream = orders(env, True).filter(is_dear)
    window = TumblingEventTimeWindows.of(Time.seconds(1))
    told = tiers(stream.map(lambda o: o.price + 1).name("more"))
    assert told["Map"] == told["Filter"] == told["more"] == COMPILED
    assert tiers(stream.key_by("key").sum("price"))["Keyed Aggregation"] == "vectorised"
    by_number = tiers(stream.key_by(0).sum("price"))["Keyed Aggregation"]
    assert by_number == "built-in on rows: objects of Order have no fields by number"
    assert tiers(stream.key_by("key").window(window).max("price"))["TumblingEventTimeWindows"].startswith("vectorised")
    sessions = stream.key_by("key").window(EventTimeSessionWindows.with_gap(Time.seconds(1)))
    assert tiers(sessions.sum("price"))["EventTimeSessionWindows"].startswith("vectorised")
    assert tiers(stream.key_by("key").first_row())["First Row"] == "vectorised"
    last = tiers(stream.key_by("key").last_row())["Last Row"]
    assert last == "on rows: its results are Rows with objects of Order in them"
    reduced = stream.key_by(lambda o: o.key).reduce(lambda a, b: Order(a.key, a.price + b.price, b.name))
    assert tiers(reduced)["Keyed Reduce"] == COMPILED
    paired = stream.join(stream).where("key").equal_to(lambda o: o.key % 3).window(window).apply(both)
    told = tiers(paired.key_by("key").sum("price"))
    assert told["Window Join"].endswith("records by slice, its key computed on columns, function compiled")
    assert told["Keyed Aggregation"] == "vectorised"
    refused = tiers(stream.map(lambda o: o.nothing).name("refused"))["refused"]
    assert refused == "interpreted (its records have no field .nothing)"


def results(env, is_columns):
    keyed = orders(env, is_columns).filter(is_dear).set_parallelism(1).key_by("key")
    window = TumblingEventTimeWindows.of(Time.seconds(1))
    for stream in (
        orders(env, is_columns),
        keyed.sum("price"),
        keyed.window(window).max("price"),
        keyed.window(EventTimeSessionWindows.with_gap(Time.milliseconds(300))).sum("price"),
        keyed.max_by("price").map(lambda o: [dataclasses.astuple(o)]),
        keyed.reduce(both),
        keyed.interval_join(orders(env, is_columns).key_by(lambda o: o.key % 3))
        .between(Time.milliseconds(-300), Time.milliseconds(200))
        .process(both),
    ):
        with stream.execute_and_collect() as found:
            yield sorted(map(repr, found))


def test_results_are_those_of_rows(env):
    ours, theirs = list(results(env, True)), list(results(env, False))
    assert ours == theirs
    assert ours[0][0] == "Order(key=0, price=0.0, name='x')"
    assert all(len(found) > 10 for found in ours)


def test_flat_maps_of_columns_stay_columns(env):
    stream = orders(env, True)
    pairs = stream.flat_map(lambda o: [(o.key, i) for i in range(2)] if is_dear(o) else []).name("pairs")
    told = tiers(pairs.set_parallelism(1).key_by(0).sum(1))
    assert (told["pairs"], told["Keyed Aggregation"]) == (COMPILED, "vectorised")
    refused = tiers(stream.flat_map(lambda o: [o.key, o.price]).name("refused"))["refused"]
    assert refused == "interpreted (its records are of several types)"
    found = []
    for is_columns in (True, False):
        made = orders(env, is_columns).flat_map(lambda o: [(o.key, i) for i in range(2)] if is_dear(o) else [])
        with made.set_parallelism(1).key_by(0).sum(1).execute_and_collect() as results:
            found.append(sorted(results))
    assert found[0] == found[1]
    assert len(found[0]) > 100
