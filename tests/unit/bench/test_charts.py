"""Charts of benchmark results: the newest row of each, round axes, and pictures that are whole."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.charts import (
    LEFT,
    RIGHT,
    WIDTH,
    Chart,
    Series,
    charts_of,
    decades,
    drawn,
    newest,
    page_of,
    picture,
    ticks,
    write_charts,
)
from tests.bench.flink_cluster import conf_text

SVG = "{http://www.w3.org/2000/svg}"


def keyed_row(contender: str, warm: float, **more: object) -> dict:
    rate = [warm * 0.9, warm, warm * 1.1]
    row = {"workload": "keyed-sum", "contender": contender, "backend": "hashmap", "keys": 10}
    return {**row, "warm_events_per_cpu_s": rate, "cold_events_per_cpu_s": rate, **more}


def scaling_row(channels: int, rate: float) -> dict:
    spread = [rate, rate, rate]
    row = {"workload": "scaling-channels", "contender": "engine", "channels": channels}
    return {**row, "warm_events_per_cpu_s": spread, "warm_events_per_s": spread}


def test_the_newest_row_of_each_contender_and_point_counts():
    rows = [keyed_row("engine", 1), keyed_row("flink-java", 2), keyed_row("engine", 3), scaling_row(2, 1)]
    kept = newest([*rows, scaling_row(8, 1)])
    assert kept == [rows[1], rows[2], rows[3], scaling_row(8, 1)]


@given(st.floats(1e-3, 1e9))
def test_axes_reach_over_the_largest_value_in_few_round_steps(largest):
    marks = ticks(largest)
    assert marks[0] == 0
    assert marks[-1] >= largest * (1 - 1e-6)
    assert 2 <= len(marks) <= 7
    powers = decades(largest / 3, largest)
    assert powers[0] <= largest / 3 * (1 + 1e-6)
    assert powers[-1] >= largest * (1 - 1e-6)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_the_length_of_a_bar_is_its_median(logarithmic):
    series = tuple(Series(name, (("g", [v, v, v]),)) for name, v in (("a", 10.0), ("b", 100.0), ("c", 1000.0)))
    parts, height = drawn(Chart("t", "u", series, logarithmic=logarithmic), 0)
    bars = [ElementTree.fromstring(part) for part in parts if part.startswith("<rect")]
    short, middle, long = (float(bar.get("width", "0")) for bar in bars)
    if logarithmic:
        assert long == pytest.approx(2 * middle, abs=0.2)
        assert short == 1  # the axis begins there
    else:
        assert long == pytest.approx(10 * middle, rel=0.01)
        assert long == WIDTH - LEFT - RIGHT  # the axis ends there
    assert max(float(bar.get("y", "0")) for bar in bars) < height


@pytest.mark.parametrize(("better", "expected"), [("more is better", "4 ×"), ("less is better", "0.25 ×")])
def test_a_bar_says_how_much_better_the_first_contender_is(better, expected):
    series = (Series("engine", (("g", [8, 8, 8]),)), Series("flink-java", (("g", [2, 2, 2]), ("other", [1, 1, 1]))))
    said = [part for part in drawn(Chart("t", "u", series, better=better), 0)[0] if "×" in part]
    assert len(said) == 1  # the first one has no other of its own, and nobody is compared with himself
    assert f"engine {expected}" in said[0]


def test_charts_have_what_there_are_rows_for_and_nothing_else():
    rows = [keyed_row("engine", 9e6), keyed_row("flink-java", 1e6), *(scaling_row(n, 5e6) for n in (8, 2))]
    rows.append(keyed_row("engine", 1e5, backend="rocksdb"))
    bars, on_disk, curve = charts_of(rows)
    assert [series.name for series in bars.series] == ["engine", "flink-java"]
    assert bars.series[0].points[0] == ("warm", pytest.approx([8.1, 9.0, 9.9]))
    assert [series.name for series in on_disk.series] == ["engine"]
    assert [x for x, _ in curve.series[0].points] == [2, 8]
    assert charts_of([{"workload": "unknown", "contender": "engine"}]) == []


def test_slots_are_charted_by_workload_and_the_curve_is_that_of_the_keyed_sum():
    def row(of: str, contender: str, slots: int, ratio: float) -> dict:
        spread = [ratio, ratio, ratio]
        named = {"workload": "scaling-slots", "contender": contender, "of": of, "slots": slots}
        return {**named, "ratio_to_first_wall": spread, "warm_events_per_s": [1e6, 1e6, 1e6]}

    rows = [row(of, "engine", slots, slots * 0.9) for of in ("keyed-sum", "map-python") for slots in (1, 2)]
    rows += [row("keyed-sum", "flink-java", slots, slots * 0.5) for slots in (1, 2)]
    bars, curve = charts_of(rows)
    of_engine, of_flink = bars.series
    assert of_engine.points == (("keyed-sum", [1.8, 1.8, 1.8]), ("map-python", [1.8, 1.8, 1.8]))
    assert of_flink.points == (("keyed-sum", [1.0, 1.0, 1.0]),)
    assert [(series.name, len(series.points)) for series in curve.series] == [("engine", 2)]


def test_a_picture_is_well_formed_and_names_are_escaped():
    chart = Chart("a < b", "u & v", (Series("<engine>", (("g", [1, 2, 3]),)),))
    root = ElementTree.fromstring(picture([chart, *charts_of([scaling_row(2, 1.0), scaling_row(64, 1.0)])]))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "a < b" in texts
    assert "<engine>" in texts
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    assert page_of("<svg/>").startswith("<!doctype html>")


def test_charts_are_written_from_a_file_of_rows(tmp_path):
    results, target = tmp_path / "results.json", tmp_path / "out.html"
    results.write_text(json.dumps(keyed_row("engine", 2e6)) + "\n\n")
    assert write_charts(str(results), str(target)) == 0
    assert "<svg" in target.read_text()
    results.write_text(json.dumps({"workload": "other", "contender": "engine"}))
    assert write_charts(str(results), str(target)) == 1


def test_the_configuration_of_the_peer_is_quoted():
    assert conf_text({"a.b": "500 ms", "n": 2}) == 'a.b: "500 ms"\nn: "2"\n'
