"""Reading savepoints without their program: by the Python API and by ``flink state``."""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
import types

import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from engine.checkpoint.model import CompletedCheckpoint, OperatorLayout, SubtaskState, VertexState
from engine.checkpoint.reader import SavepointReader
from engine.checkpoint.state_files import ChunkWriter, upload_file, write_file
from engine.checkpoint.storage import write_metadata
from engine.core.clock import ManualClock
from engine.core.errors import ConfigError, InputError
from engine.core.ids import JobID, JobVertexID, OperatorID
from engine.core.records import Row
from engine.operators.broadcast import BroadcastProcessSpec
from engine.operators.keys import FieldKey
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedBroadcastProcessFunction, KeyedProcessFunction
from engine.protocol.checkpoint import (
    CheckpointKind,
    KeyedStateHandle,
    ListStateHandle,
    OperatorStateHandles,
)
from engine.state.descriptors import (
    ListStateDescriptor,
    MapStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.time.watermarks import Duration
from flink_yarn.cli import main
from tests.testing.operator_harness import OperatorHarness

KEY = FieldKey(0)
RULES = MapStateDescriptor("rules")


@dataclasses.dataclass
class Order:
    amount: int
    paid: bool


class Shop(KeyedProcessFunction):
    def open(self, runtime_context):
        self.total = runtime_context.get_state(ValueStateDescriptor("total"))
        self.orders = runtime_context.get_list_state(ListStateDescriptor("orders"))
        self.by_item = runtime_context.get_map_state(MapStateDescriptor("by item"))
        expiring = ValueStateDescriptor("seen")
        expiring.enable_time_to_live(StateTtlConfig.new_builder(Duration.of_hours(1)).build())
        self.seen = runtime_context.get_state(expiring)

    def process_element(self, value, ctx):
        number = value[1]
        if number is None:
            self.total.clear()
            return
        self.total.update((self.total.value() or 0) + number)
        self.orders.add(Order(number, number % 2 == 0))
        self.by_item.put(f"item {number % 2}", Row(number=number, text="x"))
        self.seen.update(("first", number))
        ctx.timer_service().register_event_time_timer(number)


class Ruled(KeyedBroadcastProcessFunction):
    def process_element(self, value, ctx):
        pass

    def process_broadcast_element(self, value, ctx):
        ctx.get_broadcast_state(RULES).put(*value)


ROWS = [(f"user {number % 4}", number) for number in range(10)]


def handles_of(taken, folder):
    """Write a harness's snapshot as a task does; return the handles of its first operator."""
    keyed = []
    for part, layers in taken.layers[0].items():
        writer = ChunkWriter(f"{folder}/{part}-{taken.checkpoint_id}", 100)
        for number, layer in enumerate(layers):
            writer.add_layer(sorted(layer.items()), is_delta=number > 0)
        keyed.append(KeyedStateHandle(part, 0, 128, tuple(writer.finish())))
    for (_, part), (kind, files) in taken.folders.items():
        uploaded = tuple((name, upload_file(f"{files}/{name}", f"{folder}/{name}")) for name in os.listdir(files))
        keyed.append(KeyedStateHandle(part, 0, 128, files=uploaded, format=kind))
    lists = taken.lists[0]
    handle = None if lists is None else ListStateHandle(write_file(pickle.dumps(lists, 5), ""))
    return OperatorStateHandles(tuple(keyed), handle)


def savepoint_of(folder, operators):
    """Write the metadata. ``operators``: (uid, name, handles)."""
    vertices = tuple(
        VertexState(
            JobVertexID(f"v{number}"),
            name,
            1,
            128,
            (OperatorLayout(OperatorID.from_text(name), name, uid),),
            {0: SubtaskState({OperatorID.from_text(name): handles})},
        )
        for number, (uid, name, handles) in enumerate(operators)
    )
    job_id = JobID("0" * 32)
    write_metadata(
        CompletedCheckpoint(7, job_id, CheckpointKind.SAVEPOINT, 1_700_000_000_000, vertices, {}, str(folder))
    )


def shop_handles(folder, config, *, files=False):
    with OperatorHarness(ProcessSpec(Shop(), KEY), clock=ManualClock(5000), config=config) as harness:
        harness.process([(f"other {number}", 1000) for number in range(50)], [1] * 50)
        first = harness.snapshot(1)
        harness.process([*ROWS, ("other 7", None)], [1] * 11)
        harness.watermark(3)
        taken = harness.snapshot(2, since=first, folder=str(folder) if files else None)
        return handles_of(taken, folder), taken


@pytest.fixture(params=["hashmap", "increments", "rocksdb", "rocksdb, canonical"])
def savepoint(request, tmp_path):
    folder = tmp_path / "savepoint"
    folder.mkdir()
    config = {"state.backend.type": request.param.partition(",")[0].replace("increments", "hashmap")}
    if request.param == "increments":
        config["execution.checkpointing.incremental"] = "true"
    shop, taken = shop_handles(folder, config, files=request.param == "rocksdb")
    assert (taken.num_deltas > 0) is (request.param == "increments")
    with OperatorHarness(BroadcastProcessSpec(Ruled(), (RULES,), KEY)) as harness:
        harness.process([("limit", 5), ("mode", "strict")], input_index=1)
        ruled = handles_of(harness.snapshot(3), folder)
    savepoint_of(folder, [("shop", "Shop -> Map", shop), (None, "rules", ruled)])
    moved = tmp_path / "moved"
    folder.rename(moved)
    return str(moved)


def test_the_operators_of_a_savepoint_are_listed_with_their_states(savepoint):
    shop, rules = SavepointReader.read(savepoint).operators()
    assert (shop.uid, shop.name, shop.parallelism, shop.max_parallelism) == ("shop", "Shop -> Map", 1, 128)
    kinds = {state.name: state.kind for state in shop.states}
    assert kinds == {"total": "value", "orders": "list", "by item": "map", "seen": "value", "timers": "timers"}
    assert [(state.name, state.kind) for state in rules.states if state.num_entries] == [("rules", "broadcast state")]
    counts = {state.name: state.num_entries for state in shop.states if not state.is_estimate}
    assert all(counts[name] == expected for name, expected in {"orders": 54, "total": 53}.items() if name in counts)


def test_each_kind_of_state_becomes_a_table(savepoint):
    reader = SavepointReader.read(savepoint)
    totals = {row["key"]: row["value"] for row in reader.keyed_state("shop", "total").rows()}
    assert {key: value for key, value in totals.items() if key.startswith("user")} == {
        "user 0": 12, "user 1": 15, "user 2": 8, "user 3": 10,
    }  # fmt: skip
    assert len(totals) == 4 + 49
    assert "other 7" not in totals  # cleared
    orders = reader.keyed_state("shop", "orders").to_arrow().to_pylist()
    assert [row for row in orders if row["key"] == "user 1"] == [
        {"key": "user 1", "index": index, "value": {"amount": amount, "paid": False}}
        for index, amount in enumerate((1, 5, 9))
    ]
    items = reader.keyed_state("shop", "by item").to_arrow().to_pylist()
    assert [row for row in items if row["key"] == "user 2"] == [
        {"key": "user 2", "map_key": "item 0", "value": {"number": 6, "text": "x"}}
    ]
    seen = reader.keyed_state("Shop -> Map", "seen").to_arrow().to_pylist()
    assert {"key": "user 3", "value": {"f0": "first", "f1": 7}, "last_touch": 5000} in seen
    timers = reader.timers("shop").to_arrow().to_pylist()
    assert sorted(row["time"] for row in timers if row["key"].startswith("user")) == [4, 5, 6, 7, 8, 9]
    assert {row["domain"] for row in timers} == {"event time"}
    assert reader.operator_state("rules", "rules") == [("limit", 5), ("mode", "strict")]


def test_a_table_becomes_a_data_frame(savepoint, monkeypatch):
    orders = SavepointReader.read(savepoint).keyed_state("shop", "orders")
    frame = orders.to_pandas()
    assert list(frame.columns) == ["key", "index", "value"]
    assert frame[frame.key == "user 1"]["value"].tolist() == [{"amount": n, "paid": False} for n in (1, 5, 9)]
    assert len(orders.to_pandas(limit=7)) == 7
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"needs pandas.*pip install '\.\[pandas\]'"):
        orders.to_pandas()


def test_what_is_not_there_is_answered_with_what_is(savepoint):
    reader = SavepointReader.read(savepoint)
    with pytest.raises(InputError, match=r"no operator 'shopping' here; there are: .*'Shop -> Map' \(uid 'shop'\)"):
        reader.keyed_state("shopping", "total")
    with pytest.raises(InputError, match=r"no keyed state 'totals' here; it has .*'total'"):
        reader.keyed_state("shop", "totals")
    with pytest.raises(ConfigError, match=r"out.xlsx should end with .parquet, .csv, .arrow or .feather"):
        reader.keyed_state("shop", "total").write("out.xlsx")


def test_the_command_lists_shows_and_exports(savepoint, tmp_path, capsys):
    assert main(["state", savepoint]) == 0
    listed = capsys.readouterr().out
    assert "Savepoint 7 of job" in listed
    assert "Shop -> Map  (uid shop; parallelism 1 of 128)" in listed
    assert "by item  map" in listed
    assert "broadcast state" in listed
    assert main(["state", savepoint, "--uid", "shop"]) == 0
    assert "by item  map" in capsys.readouterr().out
    assert main(["state", savepoint, "--uid", "shop", "--state", "total", "--limit", "5"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split() == ["key", "value"]
    assert "there are more" in shown
    for ending in ("parquet", "csv", "arrow"):
        target = str(tmp_path / f"out.{ending}")
        assert main(["state", savepoint, "--uid", "shop", "--state", "orders", "--to", target]) == 0
        assert "60 rows written" in capsys.readouterr().out
    table = pyarrow.parquet.read_table(str(tmp_path / "out.parquet"))
    assert table.schema.names == ["key", "index", "value"]
    assert pyarrow.feather.read_table(str(tmp_path / "out.arrow")).equals(table)
    assert pyarrow.csv.read_csv(str(tmp_path / "out.csv")).column_names == [
        "key",
        "index",
        "value.amount",
        "value.paid",
    ]
    assert main(["state", savepoint, "--uid", "shop", "--state", "timers"]) == 0
    assert "event time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name the savepoint or checkpoint"),
        (["nowhere"], "Savepoint nowhere does not exist"),
        (["SAVEPOINT", "--state", "total"], "Name the operator too, with --uid"),
        (
            ["SAVEPOINT", "--uid", "shop", "--to", "x.csv"],
            "Name the state of operator 'shop' with --state; it has ",
        ),
        (["SAVEPOINT", "--uid", "cafe"], "There is no operator 'cafe' here; there are: Operator 'Shop -> Map'"),
        (["SAVEPOINT", "--uid", "shop", "--state", "total", "--limit", "many"], "--limit many: expected a number"),
    ],
)
def test_wrong_use_of_the_command_is_explained(savepoint, capsys, words, message):
    assert main(["state", *(savepoint if word == "SAVEPOINT" else word for word in words)]) == 1
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


def test_values_whose_class_is_gone_are_shown_by_their_attributes(tmp_path, monkeypatch):
    module = types.ModuleType("shop_of_old")
    exec("class Order:\n    def __init__(self, amount):\n        self.amount = amount", module.__dict__)
    monkeypatch.setitem(sys.modules, "shop_of_old", module)

    class Keep(KeyedProcessFunction):
        def open(self, runtime_context):
            self.last = runtime_context.get_state(ValueStateDescriptor("last"))

        def process_element(self, value, ctx):
            self.last.update(module.Order(value[1]))

    with OperatorHarness(ProcessSpec(Keep(), KEY)) as harness:
        harness.process([("a", 5)])
        handles = handles_of(harness.snapshot(1), tmp_path)
    savepoint_of(tmp_path, [("keep", "Keep", handles)])
    monkeypatch.delitem(sys.modules, "shop_of_old")
    table = SavepointReader.read(str(tmp_path)).keyed_state("keep", "last")
    assert table.to_arrow().to_pylist() == [{"key": "a", "value": {"amount": 5}}]
    assert [repr(value) for _, _, value in table.entries()] == ["Order(amount=5)"]


def test_a_column_of_values_of_several_types_becomes_text(tmp_path):
    class Keep(KeyedProcessFunction):
        def open(self, runtime_context):
            self.last = runtime_context.get_state(ValueStateDescriptor("last"))

        def process_element(self, value, ctx):
            self.last.update(value[1])

    with OperatorHarness(ProcessSpec(Keep(), KEY)) as harness:
        harness.process([("a", 5), (3, "five"), (None, {1: 2})])
        handles = handles_of(harness.snapshot(1), tmp_path)
    savepoint_of(tmp_path, [("keep", "Keep", handles)])
    rows = SavepointReader.read(str(tmp_path)).keyed_state("keep", "last").to_arrow().to_pylist()
    assert sorted(rows, key=str) == [
        {"key": "3", "value": "five"},
        {"key": "a", "value": "5"},
        {"key": None, "value": "[{'key': 1, 'value': 2}]"},
    ]
