"""What a program says of regular joins, top-N, first and last rows, and what comes of it."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from engine.common import Row, Time, Types, WatermarkStrategy
from engine.core.errors import EngineError, ProgramError
from engine.core.printing import format_typed
from engine.core.records import RowKind
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.aggregates import avg, count, first, max_, min_, sum_
from engine.datastream.connectors.file_system import Encoder, FileSink
from engine.datastream.window import TumblingEventTimeWindows
from tests.unit.datastream.test_vectorise import TYPED, columns, tiers
from tests.unit.operators.test_regular_join import applied

PAIRS = Types.TUPLE([Types.LONG(), Types.STRING()])
NAMED = Types.ROW_NAMED(["k", "name"], [Types.LONG(), Types.STRING()])


@pytest.fixture
def env():
    return StreamExecutionEnvironment.create_local_environment(1)


def shown(stream):
    return [format_typed(record) for record in stream.execute_and_collect()]


def test_the_plan_says_what_runs_on_columns_and_why_the_rest_does_not(env):
    left, right = columns(env), columns(env, 50)
    joined = left.regular_join(right, "k", "k")
    assert tiers(joined)["Regular Join"] == "vectorised, inner, records by key, columns beside columns"
    behind = tiers(joined.key_by(0).sum(1))
    assert behind["Keyed Aggregation"] == "vectorised"
    added = left.regular_join(right, 0, 0, output=lambda a, b: (a[0], a[1] + b[1]))
    assert tiers(added)["Regular Join"] == "vectorised, inner, records by key, function compiled"
    picked = left.regular_join(right, 0, 0, condition=lambda a, b: a.v > b["v"])
    assert "condition compiled" in tiers(picked)["Regular Join"]
    full = left.regular_join(right, ["k", "v"], [0, 1], "full")
    assert tiers(full)["Regular Join"] == "vectorised, full, records by key, a changelog of columns"
    limited = left.regular_join(right, 0, 0, state_ttl=Time.hours(1))
    assert tiers(limited)["Regular Join"] == "vectorised, inner, records by key, columns beside columns"
    asked = left.regular_join(right, 0, 0, "left", condition=lambda a, b: a.v > b["v"])
    assert "condition compiled, a changelog of columns" in tiers(asked)["Regular Join"]
    keyed = left.key_by("k")
    assert tiers(keyed.top_n(3, "v"))["Top N"].startswith("vectorised")
    assert tiers(keyed.first_row())["First Row"] == "vectorised"
    assert tiers(keyed.first_row().key_by(1).sum(1))["Keyed Aggregation"] == "vectorised"
    assert tiers(keyed.last_row())["Last Row"] == "vectorised, a changelog of columns"
    assert tiers(env.from_collection([(1, "a")], PAIRS).key_by(0).top_n(1, 1))["Top N"] == "on rows: its input is rows"


def test_the_plan_says_how_far_columns_carry_a_changelog(env, tmp_path):
    left, right = columns(env), columns(env, 50)
    full = left.regular_join(right, "k", "k", "full")
    ranked = left.key_by("k").top_n(3, "v", with_rank=True)
    for changelog in (full, ranked, left.key_by("k").last_row()):
        kept = changelog.filter(lambda row: row.v > 3)
        found = tiers(kept.map(lambda row: row).key_by("k").sum("v"))
        assert found["Keyed Aggregation"] == "built-in on rows: its input is a changelog"
        assert tiers(kept.key_by("k").last_row())["Last Row"] == "vectorised, a changelog of columns"
        again = tiers(kept.regular_join(right, "k", "k").key_by("k").sum("v"))
        assert again["Regular Join"] == "vectorised, inner, records by key, a changelog of columns"
        assert again["Keyed Aggregation"] == "built-in on rows: its input is a changelog"
        paired = kept.regular_join(right, "k", "k", output=lambda a, b: (a.k, b.v))
        assert tiers(paired)["Regular Join"] == "vectorised, inner, records by key, a changelog of rows"
        window = kept.key_by("k").window(TumblingEventTimeWindows.of(Time.seconds(1))).sum("v")
        assert tiers(window)["TumblingEventTimeWindows"].endswith(", on rows: its input is a changelog")
        # Right behind it, without a filter, the plan is sure.
        summed = tiers(changelog.key_by("k").sum("v"))["Keyed Aggregation"]
        assert summed == "vectorised, a changelog of columns"
        least = tiers(changelog.key_by("k").min("v"))["Keyed Aggregation"]
        assert least == "a changelog, built-in on rows: minima and maxima of a changelog"
        best = changelog.key_by("k").top_n(2, "v", with_rank=True)
        assert tiers(best)["Top N"].startswith("vectorised")
        assert tiers(best.key_by("k").top_n(2, "v"))["Top N"].startswith("vectorised")
        said = kept.key_by("k").top_n(2, "v", changelog=True)
        assert tiers(said)["Top N"].startswith("vectorised")
        assert tiers(kept.key_by("k").top_n(2, "v"))["Top N"] == "on rows: its input is a changelog"
        grouped = changelog.key_by("k").aggregate(count())
        assert tiers(grouped)["Group Aggregate"] == "vectorised, a changelog of columns"
        paired = tiers(changelog.key_by(lambda row: (row.k, row.v)).aggregate(count()))["Group Aggregate"]
        assert paired == "a changelog, built-in on rows: its key is a tuple that a function gives"
        assert tiers(grouped.key_by(1).aggregate(sum_(0)))["Group Aggregate"] == "vectorised, a changelog of columns"
        # What a function makes of the records is no changelog, on rows neither.
        assert tiers(kept.map(lambda row: (row.k, row.v)).key_by(0).sum(1))["Keyed Aggregation"] == "vectorised"
    ranks = ranked.map(lambda row: (row.k, row[3]))
    assert tiers(ranks.key_by(0).sum(1))["Keyed Aggregation"] == "vectorised"
    added = left.regular_join(right, "k", "k", "full", output=lambda a, b: (a or b).k)
    assert tiers(added)["Regular Join"] == "vectorised, full, records by key, a changelog of rows"
    for number, (sinks, is_vectorised) in enumerate(
        (
            (lambda stream, path: stream.write_as_text(path), True),
            (lambda stream, path: stream.write_as_csv(path), False),
            (lambda stream, path: stream.sink_to(FileSink.for_row_format(path, Encoder()).build()), True),
        )
    ):
        own = StreamExecutionEnvironment.create_local_environment(1)
        stream = columns(own).key_by("k").last_row()
        sinks(stream, str(tmp_path / str(number)))
        graph, _ = own._build("plan")
        told = [info.tier for vertex in graph.vertices for info in vertex.operators][-1]
        assert told.startswith("vectorised") is is_vectorised, told
        assert is_vectorised or told.endswith("on rows: its input is a changelog"), told


def test_changelogs_pass_between_tasks_with_their_kinds(env, tmp_path):
    """Joined by one key, dealt out by another one, filtered and written, by two subtasks each."""
    env.set_parallelism(2)
    found = []
    for number, one in enumerate(
        (env.from_collection([(i % 3, i, i * 100) for i in range(60)], TYPED), columns(env, 60))
    ):
        few = one.filter(lambda row: row[1] % 2 == 1)
        joined = one.regular_join(few, ["k", "v"], ["k", "v"], "left").key_by("v")
        kept = joined.filter(lambda row: row.k < 2)
        last = one.key_by("k").last_row().rebalance().filter(lambda row: row.v >= 0)
        path = tmp_path / str(number)
        kept.write_as_text(str(path))
        table = applied_in_any_order(kept.execute_and_collect())
        written = [line for part in sorted(path.iterdir()) for line in part.read_text().splitlines()]
        assert len(written) >= sum(table.values()) == 40
        assert {line[:2] for line in written} <= {"+I", "-D"}
        told = Counter({"+I": 1, "-D": -1})
        lines = Counter()
        for line in written:
            lines[line[2:]] += told[line[:2]]
        found.append((table, +lines, applied_in_any_order(last.execute_and_collect())))
    assert found[0][:2] == found[1][:2]
    for _, _, last_rows in found:
        assert sorted(row[0] for row in last_rows) == [0, 1, 2]


def applied_in_any_order(rows):
    """Return what is left of a changelog whose parts came by several ways."""
    table = Counter()
    for row in rows:
        table[tuple(row)] += 1 if row.get_row_kind() in (RowKind.INSERT, RowKind.UPDATE_AFTER) else -1
    return +table


def test_columns_and_rows_give_the_same_in_a_job(env):
    generated = [(i % 3, i, i * 100) for i in range(100)]
    found = []
    for one in (env.from_collection(generated, TYPED), columns(env)):
        few = one.filter(lambda row: row[1] < 9)
        joined = one.regular_join(few, ["k", "v"], ["k", "v"], "left")
        ranked = one.key_by("k").top_n(2, ["k", "v"], [True, False], with_rank=True)
        results = [
            applied(Counter(), joined.execute_and_collect()),  # which side comes first is not known
            sorted(shown(one.regular_join(few, "k", "k").map(str))),
            sorted(shown(one.regular_join(few, "k", "k", condition=lambda a, b: a.v > b.v).map(str))),
            shown(ranked),
            shown(one.key_by("k").first_row().map(lambda row: (row[0], row[1]))),
            shown(one.key_by("k").last_row()),
        ]
        found.append(results)
    assert found[0] == found[1]
    assert [len(each) for each in found[0]] == [100, 300, 282, len(found[0][3]), 3, 197]
    assert found[0][4] == ["(0,0)", "(1,1)", "(2,2)"]


def test_fields_of_both_sides_stand_side_by_side(env):
    left = env.from_collection([(1, "a"), (2, "b")], NAMED)
    right = env.from_collection([(1, "x")], NAMED)
    joined = left.key_by("k").regular_join(right.key_by("k"), how="left")
    assert joined.get_type() == Types.ROW_NAMED(["k", "name", "k0", "name0"], [*NAMED.get_field_types()] * 2)
    rows = list(joined.execute_and_collect())
    assert applied(Counter(), rows) == {(1, "a", 1, "x"): 1, (2, "b", None, None): 1}
    # Which side comes first is not known.
    kinds = sorted(f"{row.get_row_kind()} {row.k} {row.name} {row.name0}" for row in rows)
    assert kinds in (["+I 1 a x", "+I 2 b None"], ["+I 1 a None", "+I 1 a x", "+I 2 b None", "-D 1 a None"])


def test_a_function_makes_the_results_of_streams_without_a_type(env):
    left, right = env.from_collection(["a1", "b2"]), env.from_collection(["a3", "c4"])
    joined = left.regular_join(
        right,
        lambda text: text[0],
        lambda text: text[0],
        "right",
        output=lambda a, b: f"{a}-{b}",
        condition=lambda a, b: a < b,
    )
    kinds = [f"{row.get_row_kind()} {row[0]}" for row in joined.execute_and_collect()]
    # Nobody promises which side comes first.
    right_first = ["+I None-a3", "+I None-c4", "+I a1-a3", "-D None-a3"]
    assert sorted(kinds) in (["+I None-c4", "+I a1-a3"], right_first)


def test_in_batch_what_is_left_at_the_end_is_told(env):
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    rows = [(i % 2, i, i) for i in range(10)]
    for stream in (env.from_collection(rows, TYPED), columns(env, 10)):
        keyed = stream.key_by(0)
        ranked = sorted(map(tuple, keyed.top_n(2, 1, with_rank=True).execute_and_collect()))
        assert [row[3] for row in ranked] == [2, 1] * (len(ranked) // 2)
        last = {row[0]: row[1] for row in keyed.last_row().execute_and_collect()}
        assert len(last) == len(ranked) // 2
        assert max(last.values()) == 9
        assert len(list(keyed.first_row().execute_and_collect())) == len(last)


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (lambda a, b: a.regular_join("b", 0, 0), "expected the other DataStream"),
        (lambda a, b: a.regular_join(b, 0, 0, "outer"), "expected one of inner, left, right, full"),
        (lambda a, b: a.regular_join(b, 0), "give right_key=…, or key the stream by key_by"),
        (lambda a, b: a.regular_join(b, [len], [len]), "expected fields, by index or name, or one key selector"),
        (lambda a, b: a.regular_join(b, 7, 0), "the stream has fields 0 to 1"),
        (lambda a, b: a.regular_join(b, 0, 0, output=3), "expected a function"),
        (lambda a, b: a.map(str).regular_join(b, 0, 0), "give what a pair becomes by output="),
        (lambda a, b: a.regular_join(b, 0, 0, state_ttl=5), "expected a Time, Duration or timedelta"),
        (lambda a, b: a.regular_join(b, 0, 0, state_ttl=Time.seconds(0)), "expected more than 0 ms"),
        (lambda a, b: a.key_by(0).top_n(0, 1), "expected a whole number of at least 1"),
        (lambda a, b: a.key_by(0).top_n(1, 5), "the stream has fields 0 to 1"),
        (lambda a, b: a.key_by(0).top_n(1, [0, 1], [True]), "one truth value, or one for each"),
        (lambda a, b: a.top_n(1, 1), "needs a key"),
    ],
)
def test_what_cannot_be_meant_is_refused(env, of, told):
    with pytest.raises((ProgramError, AttributeError), match=told):
        of(env.from_collection([(1, "a")], PAIRS), env.from_collection([(1, "x")], PAIRS))


REFUSING = {
    "top_n()": lambda keyed: keyed.top_n(1, "v"),
    "first_row()": lambda keyed: keyed.first_row(),
    "sum()": lambda keyed: keyed.sum("v"),
    "max_by()": lambda keyed: keyed.max_by("v"),
    "min()": lambda keyed: keyed.window(WINDOW).min("v"),
    "aggregate()": lambda keyed: keyed.window(WINDOW).aggregate(count()),
}
#: Where the plan is sure that a changelog comes they take records back.
TAKING_BACK = ("top_n()", "sum()")
WINDOW = TumblingEventTimeWindows.of(Time.seconds(1))
BY_TS = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field("ts")


def stream_of(kind):
    """In an environment of its own."""
    env = StreamExecutionEnvironment.create_local_environment(1)
    rows = [Row(k=n % 3, v=n, ts=n * 100) for n in range(6)]
    stream = columns(env, 6) if kind == "columns" else env.from_collection(rows, TYPED)
    return stream.assign_timestamps_and_watermarks(BY_TS)


@pytest.mark.parametrize("kind", ["columns", "rows"])
@pytest.mark.parametrize("method", REFUSING)
def test_what_can_take_nothing_back_is_refused_behind_a_changelog(method, kind):
    """By the plan where it is sure, else by the first retraction; on rows and on columns alike."""
    make = REFUSING[method]
    for changelog_of in (
        lambda stream, last: last,
        lambda stream, last: last.union(stream).assign_timestamps_and_watermarks(BY_TS),
        lambda stream, last: last.regular_join(stream, 0, 0, output=lambda a, b: a),
    ):
        if method in TAKING_BACK:
            break
        stream = stream_of(kind)
        changelog = changelog_of(stream, stream.key_by("k").last_row())
        with pytest.raises(ProgramError, match=rf"^{re.escape(method)} behind '(Last Row|Regular Join)', which gives"):
            tiers(make(changelog.key_by("k")))
    filtered = stream_of(kind).key_by("k").last_row().filter(lambda row: row.ts >= 0)
    with pytest.raises(EngineError, match=rf"{re.escape(method)} got a record of kind [-+]U: its input must be plain"):
        list(make(filtered.key_by(lambda row: row.k)).execute_and_collect())
    inserted = stream_of(kind).key_by("k").last_row().filter(lambda row: row.get_row_kind() is RowKind.INSERT)
    assert list(make(inserted.key_by("k")).execute_and_collect())


def test_what_can_take_records_back_does_behind_a_changelog():
    """On rows and on columns alike, in a stream and in batch; behind a filter it has to be said."""
    for kind in ("columns", "rows"):
        for batch in (False, True):
            stream = stream_of(kind)
            if batch:
                stream._env.set_runtime_mode(RuntimeExecutionMode.BATCH)
            few = stream.filter(lambda row: row[1] in (1, 3))
            joined = stream.regular_join(few, "k", "k", "left")
            keyed = joined.assign_timestamps_and_watermarks(BY_TS).key_by(lambda row: row.k > 1)
            # (0, 0), (0, 3) with 3; (1, 1), (1, 4) with 1; (2, 2), (2, 5) alone
            sums = applied_in_any_order(keyed.sum("v").execute_and_collect())
            assert sorted(row[1] for row in sums) == [2 + 5, 0 + 1 + 3 + 4]
            ranked = joined.key_by(lambda row: row.k > 1).top_n(2, ["v0", "v"], [False, True], with_rank=True)
            told = applied_in_any_order(ranked.execute_and_collect())
            assert sorted((row[6], row[1], row[4]) for row in told) == [
                (1, 0, 3),
                (1, 2, None),
                (2, 3, 3),
                (2, 5, None),
            ]
            for least, value in ((keyed.min("v0"), 1), (keyed.max(4), 3)):
                found = [row[4] for row in applied_in_any_order(least.execute_and_collect())]
                assert found in ([value, None], [None, value])
            filtered = joined.filter(lambda row: row.ts >= 0).key_by(lambda row: row.k > 1)
            again = filtered.top_n(2, ["v0", "v"], [False, True], with_rank=True, changelog=True)
            assert applied_in_any_order(again.execute_and_collect()) == told
            for own in (keyed, filtered):
                table = own.aggregate(count(), count("v0"), sum_("v0"), avg("v"), max_("v0"))
                told = applied_in_any_order(table.execute_and_collect())
                assert told == {(False, 4, 4, 8, 2.0, 3): 1, (True, 2, 0, None, 3.5, None): 1}


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("kind", ["columns", "rows"])
def test_the_best_of_an_aggregation_of_a_join_are_those_of_a_plain_computation(kind, parallelism):
    """What SQL's TOP-N over a GROUP BY over a JOIN becomes: changelogs all the way."""
    env = StreamExecutionEnvironment.create_local_environment(parallelism)
    rows = [(i % 40, i * 37 % 50, i * 100) for i in range(400)]
    stream = env.from_collection(rows, TYPED) if kind == "rows" else columns(env, 400)
    given = rows if kind == "rows" else [(i % 3, i, i * 100) for i in range(400)]
    last = stream.key_by("v").last_row()  # of each v the last k, so groups lose records again
    joined = last.regular_join(stream.filter(lambda row: row[1] % 3 == 0), "v", "v")
    grouped = joined.key_by("k").aggregate(count(), sum_("ts0").alias("total"), avg("v"))
    best = grouped.key_by(lambda row: row.k % 2).top_n(2, ["total", "k"], [False, True], with_rank=True)
    if kind == "columns":
        assert all(
            "vectorised" in tiers(best)[name] for name in ("Last Row", "Regular Join", "Group Aggregate", "Top N")
        )
    found = applied_in_any_order(best.execute_and_collect())
    last_of_v = {}
    for k, v, _ in given:
        last_of_v[v] = k
    groups: dict = {}
    for _, v, ts in given:
        if v % 3 == 0:
            groups.setdefault(last_of_v[v], []).append((v, ts))
    table = {k: (k, len(own), sum(ts for _, ts in own), sum(v for v, _ in own) / len(own)) for k, own in groups.items()}
    expected = Counter()
    for half in (0, 1):
        own = sorted((row for row in table.values() if row[0] % 2 == half), key=lambda row: (-row[2], row[0]))
        expected.update((*row, rank) for rank, row in enumerate(own[:2], 1))
    assert found == expected


def test_aggregates_have_the_names_and_types_of_their_fields(env):
    stream = columns(env).key_by("k")
    made = stream.aggregate(count(), sum_("v"), avg("v").alias("mean"), min_("ts"), max_(1).alias("k"))
    names = ["k", "count", "sum_v", "mean", "min_ts", "k0"]
    long, double = Types.LONG(), Types.DOUBLE()
    assert made.get_type() == Types.ROW_NAMED(names, [long, long, long, double, long, long])
    assert Counter(row.mean for row in made.execute_and_collect())
    untyped = env.from_collection([("a", 1)]).key_by(lambda row: row[0]).aggregate(count())
    assert [tuple(row) for row in untyped.execute_and_collect()] == [("a", 1)]
    for wrong, why in (
        (lambda: stream.aggregate(), "give one aggregate at least"),
        (lambda: stream.aggregate(first("v")), r"aggregate\(first\): expected one or more of count"),
        (lambda: stream.aggregate(len), "expected one or more of count"),
        (lambda: stream.aggregate(sum_("x")), "the stream's fields are"),
        (lambda: stream.aggregate(count(), state_ttl=3), r"aggregate\(state_ttl=…\): expected a Time"),
    ):
        with pytest.raises(ProgramError, match=why):
            wrong()


def test_functions_see_the_kinds_of_what_they_reduce(env):
    last = columns(env, 6).key_by("k").last_row()
    reduced = last.key_by("k").reduce(lambda a, b: b if b.get_row_kind() is RowKind.UPDATE_AFTER else a)
    assert {format_typed(row) for row in reduced.execute_and_collect()} >= {"+U[0, 3, 300]", "+U[2, 5, 500]"}


def test_in_batch_a_last_row_is_no_changelog(env):
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    made = columns(env, 9).key_by("k").last_row().key_by(lambda row: row.k < 5).sum("v")
    assert [row.v for row in made.execute_and_collect()] == [6 + 7 + 8]
