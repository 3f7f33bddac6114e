"""Plans say why an operator stays on rows, though its input is columns."""

from __future__ import annotations

import pytest

from engine.common import Time, Types, WatermarkStrategy
from engine.core.errors import ProgramError
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.aggregates import count, sum_
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.window import CountEvictor, CountTrigger, TumblingEventTimeWindows

PAIR = Types.ROW_NAMED(["a", "b"], [Types.LONG(), Types.STRING()])
FLOATS = Types.ROW_NAMED(["a", "x"], [Types.LONG(), Types.ROW([Types.DOUBLE()])])
WINDOWS = TumblingEventTimeWindows.of(Time.seconds(1))
NAMES, FIELDS = ["k", "v", "row", "floats"], [Types.LONG(), Types.LONG(), PAIR, FLOATS]
FLAT = Types.ROW_NAMED(NAMES, FIELDS)
LISTS = Types.ROW_NAMED([*NAMES, "list"], [*FIELDS, Types.LIST(Types.LONG())])
MAPS = Types.ROW_NAMED([*NAMES, "map"], [*FIELDS, Types.ROW([Types.MAP(Types.STRING(), PAIR)])])


def tier(typed, program):
    """Return what the plan says of the last operator before the sink."""
    env = StreamExecutionEnvironment.create_local_environment(1)
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field("v")
    source = DataGeneratorSource.of_columns(lambda indexes: None, 10, typed)
    program(env.from_source(source, times, "columns")).sink_to(DiscardingSink())
    graph, _ = env._build("plan")
    return [info.tier for vertex in graph.vertices for info in vertex.operators][-2]


def joined(stream, key):
    return stream.join(stream.filter(lambda row: row[1] > 3)).where(key).equal_to(key).window(WINDOWS)


@pytest.mark.parametrize(
    ("typed", "program", "expected"),
    [
        (FLAT, lambda s: s.key_by("row").sum("v"), "vectorised"),
        (FLAT, lambda s: s.key_by("floats").sum("v"), "built-in on rows: its key 'floats' is a Row with a float"),
        (LISTS, lambda s: s.key_by("k").sum("v"), "vectorised"),
        (MAPS, lambda s: s.key_by("k").max_by("v"), "vectorised"),
        (LISTS, lambda s: s.key_by("k").top_n(2, "v"), "vectorised"),
        (LISTS, lambda s: s.key_by("k").first_row(), "vectorised"),
        (FLAT, lambda s: s.key_by("floats").first_row(), "on rows: its key 'floats' is a Row with a float"),
        (LISTS, lambda s: s.regular_join(s, "k", "k"), "vectorised"),
        (LISTS, lambda s: s.key_by("k").window(WINDOWS).sum("v"), "vectorised"),
        (FLAT, lambda s: s.key_by("row").window(WINDOWS).aggregate(count()), "vectorised"),
        (LISTS, lambda s: s.key_by("k").window(WINDOWS).aggregate(sum_("v")), "vectorised"),
        (LISTS, lambda s: joined(s, "row").apply(lambda a, b: [a, b]), "vectorised"),
        (FLAT, lambda s: joined(s, "floats").apply(lambda a, b: a), "on rows: its key 'floats' is a Row with a float"),
        (
            FLAT,
            lambda s: s.co_group(s).where("k").equal_to("k").window(WINDOWS).apply(lambda a, b: [1]),
            "on rows: co_group gives its function all records of both sides",
        ),
        (
            FLAT,
            lambda s: s.key_by("k").window(WINDOWS).trigger(CountTrigger.of(3)).sum("v"),
            "on rows: its trigger is CountTrigger",
        ),
        (
            FLAT,
            lambda s: s.key_by("k").window(WINDOWS).evictor(CountEvictor.of(3)).sum("v"),
            "on rows: it has an evictor",
        ),
    ],
)
def test_the_plan_says_what_keeps_an_operator_on_rows(typed, program, expected):
    told = tier(typed, program)
    assert told.startswith(expected) if expected == "vectorised" else told.endswith(expected), told


def test_that_rows_come_is_said():
    env = StreamExecutionEnvironment.create_local_environment(1)
    stream = env.from_collection([(1, [2])], Types.TUPLE([Types.LONG(), Types.LIST(Types.LONG())]))
    stream.key_by(0).max_by(0).sink_to(DiscardingSink())
    graph, _ = env._build("plan")
    assert "built-in on rows: its input is rows" in [
        info.tier for vertex in graph.vertices for info in vertex.operators
    ]


@pytest.mark.parametrize(("typed", "field"), [(LISTS, "list"), (MAPS, "map")])
def test_lists_and_maps_are_refused_as_keys(typed, field):
    with pytest.raises(ProgramError, match="cannot be a key"):
        tier(typed, lambda stream: stream.key_by(field).window(WINDOWS).aggregate(count()))
