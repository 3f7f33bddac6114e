"""Percentiles, spreads and ratios of the benchmarks; which of their figures go where."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import keyed, latency, python_peers, recovery_race
from tests.bench.measure import Measurement
from tests.bench.stats import append_json, percentile, ratios, spread


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=200), st.integers(0, 1000))
def test_a_percentile_is_the_smallest_value_that_the_share_does_not_exceed(values, thousandths):
    values.sort()
    found = percentile(values, thousandths / 1000)
    assert found in values
    assert sum(value <= found for value in values) * 1000 >= thousandths * len(values)
    assert all(
        sum(value <= smaller for value in values) * 1000 < thousandths * len(values) or smaller == values[0]
        for smaller in values
        if smaller < found
    )


def test_known_percentiles():
    hundred = list(range(1, 101))
    assert [percentile(hundred, share) for share in (0, 0.5, 0.99, 0.999, 1)] == [1, 50, 99, 100, 100]
    for values, share in (([], 0.5), ([1], 1.1), ([1], -0.1)):
        with pytest.raises(ValueError, match="percentile"):
            percentile(values, share)


def test_ratios_pair_runs_and_medians_do_not_hide_their_ends():
    assert spread([3, 1, 2]) == [1, 2, 3]
    assert ratios([10, 30, 20], [1, 10, 4]) == [3, 5, 10]
    with pytest.raises(ValueError):
        ratios([1, 2], [1])


def test_rows_are_appended_a_line_each(tmp_path):
    path = tmp_path / "results.json"
    append_json(None, [{"a": 1}])
    append_json(str(path), [{"a": 1}])
    append_json(str(path), [{"b": [1, 2]}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": [1, 2]}]


# --- what is read from the contenders ----------------------------------------------------------------------------


def result_of(output: str, cpu_s: float = 10.0, exit_code: int = 0) -> Measurement:
    return Measurement(wall_s=8.0, cpu_s=cpu_s, peak_mb=100.0, first_line_s=1.0, exit_code=exit_code, output=output)


def test_cold_is_all_of_the_process_but_its_warm_execution():
    ours = "RESULT rep=0 cold cpu=3.000 secs=2.000 span=2.5\nRESULT rep=1 warm cpu=1.500 secs=1.000 span=1.2\n"
    flinks = "RESULT w2-java {n=1} rep=0 cold cpu=5.00 secs=1.0\nRESULT w2-java {n=1} rep=1 warm cpu=1.50 secs=1.0\n"
    for output in (ours, flinks):
        sample = keyed.sample_of(result_of(output))
        assert (sample.warm_cpu_s, sample.warm_wall_s, sample.cold_cpu_s, sample.cold_wall_s) == (1.5, 1.0, 8.5, 7.0)
    for wrong in (result_of("nothing"), result_of(ours + ours), result_of(ours, exit_code=1)):
        with pytest.raises(RuntimeError):
            keyed.sample_of(wrong)


def test_ratios_compare_warm_with_warm_and_cold_with_cold():
    engine = keyed.Sample(warm_cpu_s=1, warm_wall_s=1, cold_cpu_s=2, cold_wall_s=1, peak_mb=1)
    flink = keyed.Sample(warm_cpu_s=8, warm_wall_s=1, cold_cpu_s=30, cold_wall_s=1, peak_mb=1)
    row = keyed.rows_of({"engine": [engine], "flink-java": [flink]}, 1000)[1]
    assert row["ratio_warm"][1] == 8
    assert row["ratio_cold"][1] == 15
    assert row["ratio_engine_cold_peer_warm"][1] == 4
    assert row["warm_events_per_cpu_s"][1] == 125


def test_an_execution_that_a_limit_ended_counts_by_the_events_that_it_reached(capsys):
    output = (
        "RESULT w2-java {n=1000} rep=0 cold cpu=5.00 secs=9.0 ev/s=1 ev/cpu-s=1 events=500\n"
        "RESULT w2-java {n=1000} rep=1 warm cpu=4.00 secs=9.0 ev/s=1 ev/cpu-s=1 events=800\n"
    )
    flink = keyed.sample_of(result_of(output))
    assert flink.reached == (500, 800)
    engine = keyed.Sample(warm_cpu_s=1, warm_wall_s=1, cold_cpu_s=2, cold_wall_s=1, peak_mb=1)
    first, row = keyed.rows_of({"engine": [engine], "flink-java": [flink]}, 1000)
    assert row["warm_events_per_cpu_s"][1] == 200
    assert row["cold_events_per_cpu_s"][1] == round(500 / 6)
    assert row["ratio_warm"][1] == 5
    assert row["ratio_engine_cold_peer_warm"][1] == 2.5
    assert row["reached"] == [(500, 800)]
    assert "reached" not in first
    assert "ended by the limit after [(500, 800)] events" in capsys.readouterr().out


def test_a_marginal_rate_leaves_out_what_a_quarter_of_the_events_costs(monkeypatch):
    def run(command, **_):
        size = int(command[2])
        start_s, event_s = (1.0, 1e-6) if "window_lambdas" in command[1] else (20.0, 5e-3)
        return result_of(f"events {size}\n", cpu_s=start_s + size * event_s)

    monkeypatch.setattr(python_peers, "run", run)
    shape = {"python_of": str, "runs": 1, "parallelism": 2, "timeout_s": 1.0, "only": ["engine", "pyflink"]}
    ours, theirs = python_peers.race("window-python", marginal=True, **shape)
    assert (ours["events_per_cpu_s"][1], theirs["events_per_cpu_s"][1]) == (1_000_000, 200)
    assert theirs["ratio_of_engine"][1] == pytest.approx(5000)
    ours, theirs = python_peers.race("window-python", events=4000, **shape)
    assert (ours["events"], theirs["events"]) == (4000, 4000)
    assert theirs["ratio_of_engine"][1] == pytest.approx(40 / 1.004, abs=0.01)


def test_latencies_are_of_all_subtasks_and_later_than_the_warm_up(tmp_path):
    seconds = 1_000_000_000
    first = np.array([[100 * seconds, 9_000_000], [102 * seconds, 2_000_000]], dtype=">i8")
    second = np.array([[103 * seconds, 1_000_000]], dtype=">i8")
    first.tofile(tmp_path / "0")
    second.tofile(tmp_path / "1")
    assert latency.latencies_ms(tmp_path, 2) == [1.0, 2.0]
    assert latency.latencies_ms(tmp_path, 0) == [1.0, 2.0, 9.0]


def test_the_verdict_on_latency_wants_every_run_to_reach_the_aim():
    ours = [{"p50_ms": 0.5, "p99_ms": 4.0}, {"p50_ms": 0.9, "p99_ms": 5.0}]
    flinks = [{"p50_ms": 1.0, "p99_ms": 4.0}, {"p50_ms": 1.0, "p99_ms": 4.9}]
    assert latency.verdict(0, {"engine": ours}).startswith("reached")
    assert latency.verdict(0, {"engine": [*ours, {"p50_ms": 1.1, "p99_ms": 1.0}]}).startswith("missed")
    assert latency.verdict(10, {"engine": ours, "flink-java": flinks}).startswith("missed")
    assert latency.verdict(10, {"engine": ours[:1], "flink-java": flinks[:1]}).startswith("reached")


def test_a_contender_that_lost_an_event_is_refused():
    counting = python_peers.Contender("a", "", "p", 10, 1)
    last = python_peers.Contender("b", "", "p", 10, 1, last_only=True)
    python_peers.check(counting, 10, result_of("log\nevents 10\n"))
    python_peers.check(last, 10, result_of("2> last 9\n"))
    for contender, output in ((counting, "events 9"), (counting, ""), (last, "events 10"), (last, "last 8")):
        with pytest.raises(RuntimeError, match="exit code 0"):
            python_peers.check(contender, 10, result_of(output))


def test_a_recovery_is_summed_up_by_the_median_increment_and_the_longest_standstill():
    def taken(kind, wall_s, standstill_ms):
        return {"kind": kind, "wall_s": wall_s, "cpu_s": 1, "written_mb": 2, "standstill_ms_max": standstill_ms}

    phases = [taken("FULL", 9, 5), *(taken("CONFIGURED", wall_s, 7) for wall_s in (1, 3, 2))]
    phases.append({"kind": "recovery", "kill_to_first_record_s": 4, "cpu_s": 3})
    phases = [{**phase, "peak_mb": at} for at, phase in enumerate(phases)]
    found = recovery_race.figures(phases)
    assert (found["full_s"], found["incremental_s"], found["recovery_s"]) == (9, 2, 4)
    assert (found["standstill_ms"], found["peak_mb"]) == (7, 4)
    assert (found["full_cpu_s"], found["steady_cores"]) == (1, 0)
    with_steady = recovery_race.figures([{"kind": "steady", "wall_s": 20, "cpu_s": 1, "peak_mb": 0}, *phases])
    assert with_steady["full_cpu_s"] == pytest.approx(1 - 9 / 20)  # the job used a twentieth of a core meanwhile
    assert with_steady["recovery_cpu_s"] == 3
