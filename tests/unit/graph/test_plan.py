"""Plans have Flink's form."""

from __future__ import annotations

import json

from engine.core.config import Configuration
from engine.graph.plan import execution_plan_json
from tests.unit.graph.programs import HASH, build, join, source, word_count


def test_the_plan_of_a_job_graph_is_flinks_rest_form() -> None:
    graph = build(word_count(), batch=True)
    plan = graph.plan
    assert json.loads(json.dumps(plan)) == plan
    assert (plan["jid"], plan["name"], plan["type"]) == (graph.job_id, "test", "BATCH")
    first, _, last = plan["nodes"]
    assert "inputs" not in first
    assert last == {
        "id": graph.vertices[2].vertex_id,
        "parallelism": 2,
        "operator": "",
        "operator_strategy": "",
        "description": "sum -&gt; Sink: print",
        "optimizer_properties": {},
        "inputs": [{"num": 0, "id": graph.vertices[1].vertex_id, "ship_strategy": "HASH", "exchange": "blocking"}],
    }


def test_a_pipelined_exchange_is_called_as_in_flink() -> None:
    assert build(word_count()).plan["nodes"][1]["inputs"][0]["exchange"] == "pipelined_bounded"


def test_the_execution_plan_lists_operators_before_chaining() -> None:
    nodes = json.loads(execution_plan_json([word_count()], Configuration()))["nodes"]
    assert [(node["id"], node["type"], node["pact"]) for node in nodes] == [
        (1, "Source: lines", "Data Source"),
        (2, "flat_map", "Operator"),
        (3, "sum", "Operator"),
        (4, "Sink: print", "Data Sink"),
    ]
    assert nodes[2]["predecessors"] == [{"id": 2, "ship_strategy": "HASH", "side": "second"}]
    assert nodes[0].keys() == {"id", "type", "pact", "contents", "parallelism"}


def test_the_sides_of_a_join_are_told_apart() -> None:
    plan = execution_plan_json([join("join", (source("l"), HASH), (source("r"), HASH))])
    assert [p["side"] for p in json.loads(plan)["nodes"][2]["predecessors"]] == ["first", "second"]
