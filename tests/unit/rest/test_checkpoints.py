"""Checkpoints and savepoints over REST: Flink's fields, triggers and their results."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from engine.checkpoint.model import Task
from engine.checkpoint.statistics import CheckpointRecord, RestoreRecord
from engine.core.errors import ExternalError
from engine.core.ids import JobID, JobVertexID
from engine.protocol.checkpoint import CheckpointKind, CheckpointMetrics, StopMode
from tests.testing.fake_gateway import FakeGateway
from tests.unit.rest.conftest import NOW_MS
from tests.unit.rest.schema import SCHEMAS, problems

JOB = JobID.from_text("running")
BATCH = JobID.from_text("done")
VERTEX = JobVertexID.from_text("flat_map -> key_by")


def _whole(name: str) -> dict:
    """Return a schema with the fields that its parts add."""
    schema = SCHEMAS[name]
    found = {**schema, "properties": dict(schema.get("properties", {}))}
    for part in schema.get("allOf", ()):
        found["properties"] |= _whole(part["$ref"].rsplit("/", 1)[1])["properties"] if "$ref" in part else {}
        found["properties"] |= part.get("properties", {})
    found.pop("allOf", None)
    return found


@pytest.fixture
def statistics(gateway: FakeGateway) -> FakeGateway:
    """One completed, one failed, one in progress, one restored."""
    found = gateway.checkpoint_statistics
    parallelism = dict.fromkeys((VERTEX,), 2)
    for number in (1, 2, 3):
        found.began(CheckpointRecord(number, CheckpointKind.CHECKPOINT, NOW_MS - 1000 * (4 - number), parallelism))
    metrics = CheckpointMetrics(5, 6, 7, 8, 1000, 100, 10, unaligned=True)
    for index in (0, 1):
        found.acknowledged(1, Task(VERTEX, index), metrics, NOW_MS - 2900 + index)
    found.acknowledged(2, Task(VERTEX, 1), metrics, NOW_MS - 1900)
    found.completed(1, "file:///c/chk-1", NOW_MS - 2800)
    found.failed(2, "disk full", NOW_MS - 1500)
    found.restored(RestoreRecord(9, NOW_MS - 5000, True, "file:///s"))
    return gateway


def test_statistics_have_flinks_fields(statistics, client: TestClient):
    answer = client.get(f"/jobs/{JOB}/checkpoints").json()
    whole = {name: _whole(name) for name in ("CompletedCheckpointStatistics", "FailedCheckpointStatistics")}
    assert problems(answer["latest"]["completed"], whole["CompletedCheckpointStatistics"]) == []
    assert problems(answer["latest"]["failed"], whole["FailedCheckpointStatistics"]) == []
    assert problems(answer["latest"]["restored"], SCHEMAS["RestoredCheckpointStatistics"]) == []
    assert problems(answer["counts"], SCHEMAS["Counts"]) == []
    assert problems(answer["summary"], SCHEMAS["CheckpointStatisticsSummary"]) == []
    assert problems(client.get(f"/jobs/{JOB}/checkpoints/config").json(), SCHEMAS["CheckpointConfigInfo"]) == []


def test_counts_latest_and_history_say_what_happened(statistics, client: TestClient):
    answer = client.get(f"/jobs/{JOB}/checkpoints").json()
    assert answer["counts"] == {"restored": 1, "total": 3, "in_progress": 1, "completed": 1, "failed": 1}
    assert [(row["id"], row["className"]) for row in answer["history"]] == [
        (3, "in_progress"),
        (2, "failed"),
        (1, "completed"),
    ]
    completed = answer["latest"]["completed"]
    assert (completed["state_size"], completed["checkpointed_size"]) == (2000, 200)
    assert completed["end_to_end_duration"] == 200
    assert (completed["external_path"], completed["checkpoint_type"]) == ("file:///c/chk-1", "UNALIGNED_CHECKPOINT")
    assert answer["latest"]["failed"]["failure_message"] == "disk full"
    assert answer["latest"]["savepoint"] is None
    assert answer["summary"]["state_size"]["p99"] == 2000.0


def test_details_go_down_to_subtasks(statistics, client: TestClient):
    details = client.get(f"/jobs/{JOB}/checkpoints/details/2").json()
    assert details["tasks"][VERTEX]["num_acknowledged_subtasks"] == 1
    answer = client.get(f"/jobs/{JOB}/checkpoints/details/2/subtasks/{VERTEX}").json()
    whole = dict(SCHEMAS["TaskCheckpointStatisticsWithSubtaskDetails"])
    subtasks = answer["subtasks"]
    assert problems({**answer, "subtasks": []}, whole) == []
    assert [row["className"] for row in subtasks] == ["pending", "completed"]
    assert (subtasks[1]["start_delay"], subtasks[1]["alignment"]["duration"]) == (5, 6)
    assert subtasks[1]["checkpoint"] == {"sync": 7, "async": 8}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"/jobs/{BATCH}/checkpoints", "batch job"),
        (f"/jobs/{JOB}/checkpoints/details/77", "checkpoint 77"),
        (f"/jobs/{JOB}/checkpoints/details/x", "checkpoint x"),
        (f"/jobs/{JOB}/checkpoints/{'0' * 32}", "Operation not found"),
        (f"/jobs/{JOB}/savepoints/{'0' * 32}", "Operation not found"),
        (f"/savepoint-disposal/{'0' * 32}", "Operation not found"),
    ],
)
def test_what_is_unknown_is_not_found(statistics, client: TestClient, path: str, text: str):
    answer = client.get(path)
    assert answer.status_code == 404
    assert text in answer.json()["errors"][0]


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        (f"/jobs/{JOB}/savepoints", {"target-directory": "/s"}, ("savepoint", JOB, "/s", StopMode.NONE, False)),
        (
            f"/jobs/{JOB}/savepoints",
            {"target-directory": "/s", "cancel-job": True},
            ("savepoint", JOB, "/s", StopMode.NONE, True),
        ),
        (f"/jobs/{JOB}/stop", {"targetDirectory": "/s"}, ("savepoint", JOB, "/s", StopMode.SUSPEND, False)),
        (
            f"/jobs/{JOB}/stop",
            {"targetDirectory": "/s", "drain": True},
            ("savepoint", JOB, "/s", StopMode.DRAIN, False),
        ),
    ],
)
def test_a_savepoint_is_triggered_then_polled(gateway: FakeGateway, client: TestClient, path, body, asked):
    answer = client.post(path, json=body)
    assert answer.status_code == 202
    trigger_id = answer.json()["request-id"]
    poll = f"/jobs/{JOB}/savepoints/{trigger_id}"
    assert client.get(poll).json() == {"status": {"id": "IN_PROGRESS"}, "operation": None}
    client.portal.call(gateway.may_answer.set)
    done = {"status": {"id": "COMPLETED"}, "operation": {"location": "file:///s/savepoint-1"}}
    assert client.get(poll).json() == done
    assert gateway.asked == [asked]


def test_a_checkpoint_is_triggered_then_polled(gateway: FakeGateway, client: TestClient):
    client.portal.call(gateway.may_answer.set)
    trigger_id = client.post(f"/jobs/{JOB}/checkpoints", json={"checkpointType": "FULL"}).json()["request-id"]
    answer = client.get(f"/jobs/{JOB}/checkpoints/{trigger_id}").json()
    assert answer["operation"]["checkpointId"] == 7
    assert gateway.asked == [("checkpoint", JOB, False)]


def test_a_trigger_with_the_same_id_is_one_trigger(gateway: FakeGateway, client: TestClient):
    body = {"target-directory": "/s", "triggerId": "ab" * 16}
    ids = {client.post(f"/jobs/{JOB}/savepoints", json=body).json()["request-id"] for _ in range(2)}
    assert ids == {"ab" * 16}
    assert len(gateway.asked) == 1


def test_a_failure_is_the_operations_and_says_why(gateway: FakeGateway, client: TestClient):
    gateway.refusal = ExternalError("No savepoint was taken: disk full.")
    client.portal.call(gateway.may_answer.set)
    trigger_id = client.post("/savepoint-disposal", json={"savepoint-path": "/s"}).json()["request-id"]
    answer = client.get(f"/savepoint-disposal/{trigger_id}").json()
    assert answer["status"]["id"] == "COMPLETED"
    assert "disk full" in answer["operation"]["failure-cause"]["stack-trace"]


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (f"/jobs/{JOB}/savepoints", {}, "Config key [execution.checkpointing.savepoint-dir] is not set"),
        (f"/jobs/{JOB}/stop", {}, "Property [targetDirectory] must be provided"),
        (f"/jobs/{JOB}/stop", {"targetDirectory": "/s", "drain": "yes"}, "drain is 'yes'"),
        (f"/jobs/{JOB}/savepoints", {"target-directory": 1}, "target-directory is 1"),
        (f"/jobs/{JOB}/savepoints", {"target-directory": "/s", "formatType": "X"}, "formatType is 'X'"),
        (f"/jobs/{JOB}/savepoints", {"target-directory": "/s", "triggerId": "x"}, "triggerId is 'x'"),
        (f"/jobs/{JOB}/checkpoints", {"checkpointType": "SOME"}, "checkpointType is 'SOME'"),
        ("/savepoint-disposal", {}, "savepoint-path is missing"),
    ],
)
def test_bad_requests_are_told_at_once(gateway: FakeGateway, client: TestClient, path, body, text):
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert text in answer.json()["errors"][0]
    assert gateway.asked == []


def test_the_restart_strategy_of_a_job_with_checkpoints_is_exponential_delay(gateway: FakeGateway, client: TestClient):
    assert "deactivated" in client.get(f"/jobs/{JOB}/config").json()["execution-config"]["restart-strategy"]
    gateway.config.set("execution.checkpointing.interval", "1 s")
    assert "exponential" in client.get(f"/jobs/{JOB}/config").json()["execution-config"]["restart-strategy"]
