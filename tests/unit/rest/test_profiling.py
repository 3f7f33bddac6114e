"""Flame graphs and operators of a vertex over REST."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from engine.core.config import Configuration
from engine.core.ids import JobID, JobVertexID
from engine.protocol.profiling import OperatorMetrics
from engine.rest.profiling import flame_graph
from flink_yarn.cli_profile import collapsed, hottest, table
from tests.testing.fake_gateway import FakeGateway

JOB = JobID.from_text("running")
VERTEX = JobVertexID.from_text("flat_map -> key_by")
PATH = f"/jobs/{JOB}/vertices/{VERTEX}"


def test_a_flame_graph_counts_samples_along_each_stack():
    stacks = [{("a:1", "b:2"): 3, ("a:1",): 2}, {("a:1", "c:3"): 5, (): 4}]
    graph = flame_graph(stacks, "on_cpu")
    assert graph["value"] == 10
    (a,) = graph["children"]
    assert (a["name"], a["value"]) == ("a:1", 10)
    assert [(child["name"], child["value"], child["children"]) for child in a["children"]] == [
        ("c:3", 5, []),
        ("b:2", 3, []),
    ]
    assert flame_graph(stacks, "full")["value"] == 14
    assert [child["value"] for child in flame_graph(stacks, "off_cpu")["children"]] == [4]
    assert list(collapsed(graph)) == ["a:1 2", "a:1;c:3 5", "a:1;b:2 3"]
    assert hottest(graph)[0].split() == ["50.0", "%", "c:3"]


def test_the_flame_graph_of_a_vertex_and_of_one_subtask(client: TestClient):
    answer = client.get(f"{PATH}/flamegraph?type=on_cpu&samples=10&interval=1").json()
    assert answer["endTimestamp"] > 0
    assert answer["data"]["value"] == 2 * 9  # two subtasks
    one = client.get(f"{PATH}/flamegraph?type=full&samples=10&interval=1&subtaskindex=1").json()
    assert one["data"]["value"] == 10


def test_flame_graphs_are_as_configured(client: TestClient, gateway: FakeGateway, monkeypatch):
    configured = {"rest.flamegraph.num-samples": "7", "rest.flamegraph.delay-between-samples": "1 ms"}
    monkeypatch.setattr(gateway, "config", Configuration(configured))
    assert client.get(f"{PATH}/flamegraph?subtaskindex=1").json()["data"]["value"] == 7
    monkeypatch.setattr(gateway, "config", Configuration({"rest.flamegraph.enabled": "false"}))
    answer = client.get(f"{PATH}/flamegraph")
    assert answer.status_code == 403
    assert "rest.flamegraph.enabled is false" in answer.text


@pytest.mark.parametrize(
    "query", ["type=cpu", "samples=0", "samples=x", "samples=10001", "interval=60000", "subtaskindex=9"]
)
def test_a_wrong_question_is_told(client: TestClient, query: str):
    answer = client.get(f"{PATH}/flamegraph?{query}")
    assert answer.status_code == 400, answer.text


def test_operators_of_all_subtasks_are_taken_together(client: TestClient, gateway: FakeGateway):
    vertex = gateway.job(JOB).vertices[VERTEX]
    for owner, busy_ms in zip(vertex.subtasks, (1500, 500), strict=True):
        owner.current.metrics.operators = (
            OperatorMetrics("Map", 100, 4, busy_ms, "compiled"),
            OperatorMetrics("Filter", 10, 4, 0, "compiled", "Map"),
        )
    answer = client.get(f"{PATH}/operators").json()
    assert answer["operators"][0] == {
        "name": "Map",
        "records-out": 200,
        "batches-out": 8,
        "batch-size": 25.0,
        "busy-time": 2000,
        "tier": "compiled",
        "fused-with": "",
    }
    lines = table(answer)
    assert lines[2].split() == ["Map", "200", "8", "25", "2.00", "s", "compiled"]
    assert "(above)" in lines[3]
    assert "in the loop of Map" in lines[3]
