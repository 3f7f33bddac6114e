"""DataSet programs on a real local cluster: slot processes, spilled exchanges, files, errors, iterations."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.core.config import Configuration
from engine.core.errors import JobExecutionError, OutputExistsError, ProgramError
from engine.core.metrics import IntCounter
from engine.dataset import ExecutionEnvironment, FilterFunction, MapFunction, Order, WriteMode
from engine.operators.text import WordTokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = ["to be or not to be", "that is the question", "", "ü be 日本 be"]


@pytest.fixture(scope="module")
def configuration():
    """All tests share the one local cluster of this process."""
    return Configuration({"parallelism.default": "2", "taskmanager.numberOfTaskSlots": "2"})


@pytest.fixture
def env(configuration):
    return ExecutionEnvironment(configuration)


def words(env):
    return env.from_collection(TEXT).flat_map(lambda line: [(word, 1) for word in line.split()])


COUNTS = sorted(Counter(" ".join(TEXT).split()).items())


def test_word_count_is_collected_counted_and_printed(env, capsys):
    counts = words(env).group_by(0).sum(1)
    assert sorted(counts.collect()) == COUNTS
    assert counts.count() == len(COUNTS)
    counts.print()
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"({word},{n})" for word, n in COUNTS)
    with pytest.raises(ProgramError, match="No new data sinks have been defined since the last execution"):
        env.execute()


def test_files_are_read_written_and_not_overwritten_unasked(env, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    counts = (
        env.read_text_file(str(path)).flat_map(lambda line: [(word, 1) for word in line.split()]).group_by(0).sum(1)
    )
    csv, text = tmp_path / "out.csv", tmp_path / "out.txt"
    counts.write_as_csv(str(csv), "\n", " ", WriteMode.OVERWRITE).set_parallelism(1)
    counts.write_as_text(str(text)).set_parallelism(1)
    result = env.execute("word count")
    assert result.get_net_runtime() > 0
    assert sorted(csv.read_text(encoding="utf-8").splitlines()) == sorted(f"{word} {n}" for word, n in COUNTS)
    assert sorted(text.read_text(encoding="utf-8").splitlines()) == sorted(f"({word},{n})" for word, n in COUNTS)

    counts.write_as_text(str(text)).set_parallelism(1)
    with pytest.raises((JobExecutionError, OutputExistsError), match="exists"):
        env.execute()


def test_csv_without_its_first_lines_is_joined(env, tmp_path):
    folder = tmp_path / "users"
    folder.mkdir()
    for part in range(3):
        rows = "".join(f"{part * 10 + i},user{part * 10 + i}\n" for i in range(10))
        (folder / f"{part}.csv").write_text("id,name\n" + rows)
    visits = tmp_path / "visits.txt"
    visits.write_text(";".join(f"{i % 30}|{i}" for i in range(90)) + ";")
    users = env.read_csv(str(folder), types=[int, str], ignore_first_line=True)
    seen = env.read_csv(str(visits), types=[int, int], line_delimiter=";", field_delimiter="|")
    joined = users.join(seen).where(0).equal_to(0).project_first(1).project_second(1)
    assert sorted(joined.collect()) == sorted((f"user{i % 30}", i) for i in range(90))
    alone = users.left_outer_join(seen.filter(lambda row: row[0] < 5)).where(0).equal_to(0)
    assert len(alone.filter(lambda pair: pair[1] is None).collect()) == 25


def test_the_built_in_tokenizer_counts_as_plain_python_does(env, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXT * 500), encoding="utf-8")
    counts = env.read_text_file(str(path)).flat_map(WordTokenizer()).group_by(0).sum(1)
    assert "Tokenize and count" in plan_of(env, counts)
    expected = [(word, 500 * n) for word, n in COUNTS]
    assert sorted(counts.collect()) == expected
    assert sorted(counts.map(lambda row: (row[0], row[1])).collect()) == expected
    csv = tmp_path / "out.csv"
    counts.write_as_csv(str(csv)).set_parallelism(1)
    env.execute()
    assert sorted(csv.read_text(encoding="utf-8").splitlines()) == sorted(f"{word},{n}" for word, n in expected)


def plan_of(env, data):
    data.output_to_nothing()
    plan = env.get_execution_plan()
    env._sinks.clear()
    return plan


SORTING = """
import os
from engine.core.config import Configuration
from engine.dataset import ExecutionEnvironment, Order

def count_runs(row):
    return row[0], sum(name.startswith("sort") for _, _, names in os.walk(".") for name in names)

env = ExecutionEnvironment(Configuration({"parallelism.default": "2", "taskmanager.memory.managed.size": "2m"}))
numbers = env.generate_sequence(1, 60_000).map(lambda i: ((i * 7919) % 60_013, "x" * (i % 50)))
rows = numbers.partition_custom(lambda key, n: 0, 0).sort_partition(0, Order.DESCENDING).map(count_runs).collect()
assert [key for key, _ in rows] == sorted((i * 7919 % 60_013 for i in range(1, 60_001)), reverse=True)
print("runs:", max(runs for _, runs in rows))
"""


def test_many_rows_come_out_of_one_partition_sorted_by_way_of_the_disk(tmp_path):
    # A process of its own: the memory is its local cluster's. Runs lie in the slot's folder while they are merged.
    program = tmp_path / "sorting.py"
    program.write_text(SORTING)
    ended = run_program(program)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split("runs:")[1]) > 1


def test_groups_co_groups_and_first_agree_with_a_model(env):
    rng = random.Random(7)
    rows = [(rng.choice(["a", None, float("nan"), 3, "é"]), i) for i in range(500)]
    expected = Counter(repr(key) for key, _ in rows)
    data = env.from_collection(rows)

    def size(values, out):
        own = list(values)
        out.collect((repr(own[0][0]), len(own)))

    assert dict(data.group_by(0).reduce_group(size).collect()) == expected
    top = data.group_by(0).sort_group(1, Order.DESCENDING).first(1).collect()
    assert {repr(key): i for key, i in top} == {repr(key): i for key, i in rows}
    both = data.co_group(data.filter(lambda row: row[1] < 250)).where(0).equal_to(0)
    sizes = both.using(lambda a, b: [(sum(1 for _ in a), sum(1 for _ in b))]).collect()
    assert sorted(a for a, _ in sizes) == sorted(expected.values())
    assert sum(b for _, b in sizes) == 250


def test_page_ranks_of_a_small_graph_converge_in_a_bulk_iteration(env):
    edges = [(0, 1), (0, 2), (1, 2), (2, 0), (3, 2)]
    links = env.from_collection(edges).group_by(0).reduce_group(gather_targets)
    ranks = env.from_collection([(page, 0.25) for page in range(4)]).iterate(60)
    shares = ranks.join(links).where(0).equal_to(0).using(share)
    summed = shares.union(env.from_collection([(page, 0.0) for page in range(4)])).group_by(0).sum(1)
    damped = summed.map(lambda row: (row[0], 0.0375 + 0.85 * row[1]))
    moved = damped.join(ranks).where(0).equal_to(0).using(lambda a, b: abs(a[1] - b[1])).filter(lambda d: d > 1e-9)
    result = dict(ranks.close_with(damped, moved).collect())

    expected = dict.fromkeys(range(4), 0.25)
    for _ in range(200):
        following = dict.fromkeys(range(4), 0.0375)
        for page, target in edges:
            following[target] += 0.85 * expected[page] / sum(1 for source, _ in edges if source == page)
        expected = following
    assert result == pytest.approx(expected, abs=1e-6)


def gather_targets(values):
    own = list(values)
    return [(own[0][0], [target for _, target in own])]


def share(rank, link, out):
    for target in link[1]:
        out.collect((target, rank[1] / len(link[1])))


@dataclass(frozen=True)
class Visit:
    user: str
    seconds: int


def test_objects_of_the_programs_own_classes_travel_and_group(env):
    visits = env.from_collection([Visit("a", 1), Visit("b", 5), Visit("a", 2)])
    longest = visits.group_by("user").max_by("seconds").collect()
    assert sorted(longest, key=lambda visit: visit.user) == [Visit("a", 2), Visit("b", 5)]
    sums = visits.group_by(lambda visit: visit.user).reduce(lambda a, b: Visit(a.user, a.seconds + b.seconds))
    assert sorted(visit.seconds for visit in sums.collect()) == [3, 5]


class Known(FilterFunction):
    def open(self, runtime_context):
        self.known = set(runtime_context.get_broadcast_variable("known"))
        self.dropped = IntCounter()
        runtime_context.add_accumulator("dropped", self.dropped)

    def filter(self, value):
        if value[0] in self.known:
            return True
        self.dropped.add(1)
        return False


def test_broadcast_sets_and_accumulators_of_one_source_used_twice(env):
    data = words(env)
    known = data.group_by(0).sum(1).filter(lambda row: row[1] > 1).map(lambda row: row[0])
    kept = data.filter(Known()).with_broadcast_set(known, "known").collect()
    assert Counter(word for word, _ in kept) == {"to": 2, "be": 4}
    result = env.get_last_job_execution_result()
    assert result.get_accumulator_result("dropped") == sum(n for _, n in COUNTS) - 6


class Fail(MapFunction):
    def map(self, value):
        return 1 // value


def test_a_failing_function_fails_the_job_with_operator_and_record(env):
    with pytest.raises(JobExecutionError, match=r"(?s)ZeroDivisionError.*'Risky' on record: 0") as caught:
        env.from_elements(1, 0).map(Fail()).name("Risky").collect()
    assert "return 1 // value" in str(caught.value)
    assert "engine/" not in str(caught.value)


def test_missing_input_is_one_clear_error(env):
    with pytest.raises(JobExecutionError, match="/no/such/file does not exist"):
        env.read_text_file("/no/such/file").count()


def run_example(*arguments):
    return run_program(ROOT / "examples" / "word_count.py", *arguments)


def run_program(path, *arguments):
    command = [sys.executable, str(path), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_word_count_example_prints_or_writes(tmp_path):
    printed = run_example()
    assert printed.returncode == 0, printed.stderr
    assert "(be,4)" in printed.stdout.splitlines()
    source, target = tmp_path / "in.txt", tmp_path / "out.csv"
    source.write_text("b a b\n")
    target.write_text("old")
    written = run_example("--input", str(source), "--output", str(target))
    assert written.returncode == 0, written.stderr
    assert sorted(target.read_text().splitlines()) == ["a 1", "b 2"]
