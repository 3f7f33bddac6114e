"""The paths that read: Flink's field names and types, statuses, errors."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from engine.core.errors import ExternalError
from engine.core.ids import JobID, JobVertexID, ResourceID
from engine.graph.execution_graph import ExceptionEntry
from engine.ha.job_store import JobResult
from engine.protocol.control import ErrorInfo
from engine.rest import views
from engine.rest.server import create_app
from engine.rpc import codec
from engine.runtime.jobmanager.recovery import graph_of
from tests.testing.fake_gateway import FakeGateway, taskmanager_view, word_count_job
from tests.unit.rest.schema import assert_matches

JOB = JobID.from_text("running")
FINISHED = JobID.from_text("done")
FAILED = JobID.from_text("broken")
VERTEX = JobVertexID.from_text("flat_map -> key_by")
TASKMANAGER = "host-1:40001-3fa2b1"


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/overview", "ClusterOverviewWithVersion"),
        ("/config", "DashboardConfiguration"),
        ("/jobs", "JobIdsWithStatusOverview"),
        ("/jobs/overview", "MultipleJobsDetails"),
        (f"/jobs/{JOB}", "JobDetailsInfo"),
        (f"/jobs/{FINISHED}", "JobDetailsInfo"),
        (f"/jobs/{JOB}/status", "JobStatusInfo"),
        (f"/jobs/{JOB}/plan", "JobPlanInfo"),
        (f"/jobs/{FAILED}/exceptions", "JobExceptionsInfoWithHistory"),
        (f"/jobs/{JOB}/accumulators", "JobAccumulatorsInfo"),
        (f"/jobs/{JOB}/vertices/{VERTEX}", "JobVertexDetailsInfo"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/subtasktimes", "SubtasksTimesInfo"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/taskmanagers", "JobVertexTaskManagersInfo"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/accumulators", "JobVertexAccumulatorsInfo"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/subtasks/accumulators", "SubtasksAllAccumulatorsInfo"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/subtasks/1", "SubtaskExecutionAttemptDetailsInfo"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/subtasks/1/attempts/0", "SubtaskExecutionAttemptDetailsInfo"),
        ("/taskmanagers", "TaskManagersInfo"),
        (f"/taskmanagers/{TASKMANAGER}", "TaskManagerDetailsInfo"),
        (f"/taskmanagers/{TASKMANAGER}/logs", "LogListInfo"),
        ("/jobmanager/config", "ConfigurationInfo"),
        ("/jobmanager/environment", "EnvironmentInfo"),
        ("/jobmanager/logs", "LogListInfo"),
        ("/jars", "JarListInfo"),
    ],
)
def test_every_answer_has_flinks_fields_and_types_bare_and_under_v1(client: TestClient, path: str, schema: str):
    for prefix in ("", "/v1"):
        answer = client.get(prefix + path)
        assert answer.status_code == 200, answer.text
        assert_matches(answer.json(), schema)


def test_a_running_job_shows_counts_metrics_and_times(client: TestClient):
    job = client.get(f"/jobs/{JOB}").json()
    assert job["state"] == "RUNNING"
    assert job["end-time"] == -1
    assert job["duration"] == 60_000
    assert job["timestamps"]["RUNNING"] == job["start-time"] + 10
    assert job["timestamps"]["FAILED"] == 0
    assert job["status-counts"]["RUNNING"] == 3
    source, flat_map, total = job["vertices"]
    assert (source["parallelism"], flat_map["parallelism"], flat_map["tasks"]["RUNNING"]) == (1, 2, 2)
    assert source["metrics"]["write-records"] == 180_000
    assert source["metrics"]["read-records"] == 0
    assert flat_map["metrics"]["accumulated-busy-time"] == pytest.approx(2 * 60_000 * 0.55)
    assert not flat_map["metrics"]["read-records-complete"]
    assert total["start-time"] == job["start-time"] + 90
    assert total["end-time"] == -1


def test_the_overview_counts_subtasks_by_state_in_lower_case(client: TestClient):
    rows = {row["name"]: row for row in client.get("/jobs/overview").json()["jobs"]}
    assert rows["running"]["tasks"] == {
        "total": 5, "running": 5,
        **dict.fromkeys(
            ("created", "scheduled", "deploying", "finished", "canceling", "canceled", "failed"), 0
        ),
        "reconciling": 0, "initializing": 0,
    }  # fmt: skip
    assert rows["broken"]["tasks"]["failed"] == 1
    assert rows["broken"]["tasks"]["canceled"] == 4
    assert rows["done"]["jobType"] == "BATCH"
    assert rows["done"]["duration"] == 95_005


def test_the_plan_of_a_job_without_one_is_made_of_its_vertices(client: TestClient):
    plan = client.get(f"/jobs/{JOB}/plan").json()["plan"]
    assert [node["description"] for node in plan["nodes"]] == [
        "Source: lines",
        "flat_map -> key_by",
        "sum -> Sink: print",
    ]
    assert plan["nodes"][2]["inputs"] == [
        {"num": 0, "id": VERTEX, "ship_strategy": "HASH", "exchange": "pipelined_bounded"}
    ]


def test_a_subtask_says_where_it_runs_and_how_long_it_was_in_each_state(client: TestClient):
    subtask = client.get(f"/jobs/{JOB}/vertices/{VERTEX}/subtasks/1").json()
    assert subtask["endpoint"] == "host-2:40002"
    assert subtask["taskmanager-id"] == "host-2:40002-3fa2b2"
    assert subtask["status-duration"] == {
        "CREATED": 20,
        "SCHEDULED": 70,
        "DEPLOYING": 60,
        "INITIALIZING": 110,
        "RUNNING": 59_740,
    }


def test_a_subtask_without_a_slot_is_unassigned(gateway: FakeGateway, client: TestClient):
    waiting = gateway.add_job(word_count_job("waiting"))
    vertex = next(iter(waiting.vertices))
    subtask = client.get(f"/jobs/{waiting.job_graph.job_id}/vertices/{vertex}/subtasks/0").json()
    assert subtask["endpoint"] == subtask["taskmanager-id"] == "(unassigned)"
    assert (subtask["start-time"], subtask["end-time"], subtask["duration"]) == (-1, -1, -1)


@pytest.mark.parametrize(
    ("resource_id", "log_url", "labels"),
    [
        ("tm-1", "", {}),
        ("tm-1", "http://node:1/log", {"container": "tm-1", "log": "http://node:1/log"}),
        (
            "container_e17_17_0042_02_000003",
            "http://node:1/log",
            {
                "container": "container_e17_17_0042_02_000003",
                "log": "http://node:1/log",
                "command": "yarn logs -applicationId application_17_0042 -containerId container_e17_17_0042_02_000003",
            },
        ),
    ],
)
def test_an_exception_in_a_container_says_how_its_log_is_read_when_no_page_shows_it_any_more(
    resource_id, log_url, labels
):
    error = ErrorInfo("ValueError", "bad", "", "user")
    entry = ExceptionEntry(error, 1, "Map (1/1)", "node:2", ResourceID(resource_id), log_url)
    graph = SimpleNamespace(exceptions=[entry], failure=None)
    (shown,) = views.exceptions(graph, 16)["exceptionHistory"]["entries"]  # type: ignore[arg-type]
    assert shown["failureLabels"] == labels


def test_exceptions_name_task_place_and_trace_newest_first(client: TestClient):
    history = client.get(f"/jobs/{FAILED}/exceptions").json()["exceptionHistory"]
    (entry,) = history["entries"]
    assert entry["exceptionName"] == "ZeroDivisionError"
    assert entry["stacktrace"] == 'ZeroDivisionError: division by zero\nFile "a.py", line 3, in f'
    assert entry["taskName"] == "Source: lines (1/1)"
    assert entry["endpoint"] == "host-1:40001"
    assert not history["truncated"]
    cut = client.get(f"/jobs/{FAILED}/exceptions?maxExceptions=0").json()["exceptionHistory"]
    assert cut == {"entries": [], "truncated": True}


def test_the_execution_result_waits_for_the_end(client: TestClient):
    assert client.get(f"/jobs/{JOB}/execution-result").json() == {
        "status": {"id": "IN_PROGRESS"},
        "job-execution-result": None,
    }
    done = client.get(f"/jobs/{FINISHED}/execution-result").json()
    assert done["status"]["id"] == "COMPLETED"
    result = done["job-execution-result"]
    assert (result["id"], result["application-status"], result["net-runtime"]) == (FINISHED, "SUCCEEDED", 95_005)
    assert codec.decode(base64.b64decode(result["accumulator-results"]["lines"]), int) == 7
    assert "failure-cause" not in result
    failed = client.get(f"/jobs/{FAILED}/execution-result").json()["job-execution-result"]
    assert failed["application-status"] == "FAILED"
    assert failed["failure-cause"]["class"] == "ZeroDivisionError"
    cause = codec.decode(base64.b64decode(failed["failure-cause"]["serialized-throwable"]), ErrorInfo)
    assert cause.message == "ZeroDivisionError: division by zero"


def test_an_end_that_is_not_durable_yet_is_no_result(gateway: FakeGateway, client: TestClient):
    graph = next(one for one in gateway.jobs() if one.job_graph.job_id == FINISHED)
    graph.is_result_pending = True
    assert client.get(f"/jobs/{FINISHED}/execution-result").json()["status"]["id"] == "IN_PROGRESS"


def test_a_job_that_ended_under_another_jobmanager_is_shown_without_vertices(gateway: FakeGateway, client: TestClient):
    ended = graph_of(JobResult(JobID.from_text("gone"), "gone", "FAILED", "it broke", 1000, 3500))
    gateway.graphs.append(ended)
    path = f"/jobs/{ended.job_graph.job_id}"
    details = client.get(path).json()
    assert (details["state"], details["duration"], details["vertices"]) == ("FAILED", 2500, [])
    for name in ("plan", "config", "exceptions", "accumulators", "status"):
        assert client.get(f"{path}/{name}").status_code == 200, name
    failure = client.get(f"{path}/execution-result").json()["job-execution-result"]["failure-cause"]
    assert "it broke" in failure["stack-trace"]


def test_accumulators_of_an_ended_job_are_its_results_and_of_a_running_one_the_sum(client: TestClient):
    (done,) = client.get(f"/jobs/{FINISHED}/accumulators").json()["user-task-accumulators"]
    assert done == {"name": "lines", "type": "LongCounter", "value": "7"}
    (live,) = client.get(f"/jobs/{JOB}/vertices/{VERTEX}/accumulators").json()["user-accumulators"]
    assert live == {"name": "lines", "type": "int", "value": str(2 * 60_000)}


def test_job_config_shows_the_jobs_own_settings(client: TestClient):
    config = client.get(f"/jobs/{JOB}/config").json()
    assert config["execution-config"]["job-parallelism"] == 2
    assert config["execution-config"]["user-config"] == {"input": "hdfs:///texts"}


@pytest.mark.parametrize("method", ["PATCH", "GET"])
def test_cancel_works_by_patch_and_through_a_proxy_that_knows_only_get(client: TestClient, method: str):
    path = f"/jobs/{JOB}" if method == "PATCH" else f"/jobs/{JOB}/yarn-cancel"
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()) == (202, {})
    assert client.get(f"/jobs/{JOB}/status").json() == {"status": "CANCELED"}


def test_a_cancel_mode_other_than_cancel_is_refused(client: TestClient):
    answer = client.patch(f"/jobs/{JOB}?mode=stop")
    assert answer.status_code == 400
    assert "expected cancel" in answer.json()["errors"][0]
    assert client.get(f"/jobs/{JOB}/status").json() == {"status": "RUNNING"}


UNKNOWN = "0" * 32


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        (f"/jobs/{UNKNOWN}", 404, f"Job {UNKNOWN} not found"),
        ("/jobs/nonsense", 400, "expected 32 hexadecimal digits"),
        (f"/jobs/{JOB}/vertices/{UNKNOWN}", 404, "no vertex"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/subtasks/2", 404, "no subtask 2"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/subtasks/x", 400, "expected a whole number"),
        (f"/jobs/{JOB}/vertices/{VERTEX}/subtasks/0/attempts/7", 404, "no attempt 7"),
        (f"/jobs/{JOB}/exceptions?maxExceptions=many", 400, "maxExceptions is 'many'"),
        ("/taskmanagers/nobody", 404, "TaskManager nobody not found"),
        ("/taskmanagers/nobody/log", 404, "TaskManager nobody not found"),
        (f"/taskmanagers/{TASKMANAGER}/logs/none.log", 404, "no log file none.log"),
        ("/jobmanager/log", 404, "writes no log files"),
        ("/blobs/xyz", 400, "SHA-256"),
        ("/nothing/here", 404, "Not found: /nothing/here"),
        ("/v2/overview", 404, "Not found"),
    ],
)
def test_errors_have_flinks_form(client: TestClient, path: str, status: int, message: str):
    answer = client.get(path)
    assert answer.status_code == status
    assert list(answer.json()) == ["errors"]
    assert message in answer.json()["errors"][0]


def test_a_wrong_method_is_an_error_in_the_same_form(client: TestClient):
    answer = client.delete("/overview")
    assert answer.status_code == 405
    assert list(answer.json()) == ["errors"]


def test_a_bug_in_a_handler_becomes_an_error_answer(gateway: FakeGateway, tmp_path: Path):
    gateway.overview = lambda: 1 / 0  # type: ignore[method-assign]
    client = TestClient(create_app(gateway, upload_dir=str(tmp_path / "u")), raise_server_exceptions=False)
    answer = client.get("/overview")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["errors"][0]


def test_taskmanagers_show_slots_memory_tasks_and_jobs(client: TestClient):
    rows = client.get("/taskmanagers").json()["taskmanagers"]
    assert [(row["slotsNumber"], row["freeSlots"], row["assignedTasks"]) for row in rows] == [(2, 1, 3), (2, 1, 2)]
    details = client.get(f"/taskmanagers/{TASKMANAGER}").json()
    (slot,) = details["allocatedSlots"]
    assert (slot["jobId"], slot["assignedTasks"], slot["resource"]["taskHeapMemory"]) == (JOB, 3, 600)
    assert details["metrics"]["heapUsed"] == 230 << 20


def test_taskmanager_logs_are_read_through_the_gateway(gateway: FakeGateway, client: TestClient):
    gateway.taskmanager_logs = {"": b"main", "stdout": b"1> (a,1)", "x.log": b"rotated"}
    base = f"/taskmanagers/{TASKMANAGER}"
    assert client.get(f"{base}/log").text == "main"
    assert client.get(f"{base}/stdout").text == "1> (a,1)"
    assert client.get(f"{base}/logs/x.log").content == b"rotated"
    assert client.get(f"{base}/log").headers["content-type"].startswith("text/plain")


def test_what_a_taskmanager_says_about_a_missing_log_is_a_404(gateway: FakeGateway, client: TestClient):
    async def refuse(*_: object) -> bytes:
        raise ExternalError("There is no log file here.")

    gateway.read_taskmanager_log = refuse  # type: ignore[method-assign]
    answer = client.get(f"/taskmanagers/{TASKMANAGER}/log")
    assert answer.status_code == 404
    assert "There is no log file here." in answer.json()["errors"][0]


def test_jobmanager_logs_are_served_and_nothing_outside_their_folder(
    gateway: FakeGateway, client: TestClient, tmp_path: Path
):
    folder = tmp_path / "logs"
    folder.mkdir()
    (tmp_path / "secret.log").write_text("secret")
    (folder / "standalonesession.log").write_text("line 1\nline 2\n")
    (folder / "standalonesession.out").write_text("out\n")
    (folder / "taskexecutor.log").write_text("another process on this host\n")
    os.utime(folder / "standalonesession.log", (1, 1))
    (folder / "link.log").symlink_to(tmp_path / "secret.log")
    os.mkfifo(folder / "pipe.log")
    gateway.log_dir = str(folder)
    assert client.get("/jobmanager/log").text == "line 1\nline 2\n"
    assert client.get("/jobmanager/log?tail=7").text == "line 2\n"
    assert client.get("/jobmanager/stdout").text == "out\n"
    names = [log["name"] for log in client.get("/jobmanager/logs").json()["logs"]]
    assert sorted(names) == ["standalonesession.log", "standalonesession.out", "taskexecutor.log"]
    assert client.get("/jobmanager/logs/taskexecutor.log").text == "another process on this host\n"
    for name in ("..%2fsecret.log", "%2e%2e", "link.log", "pipe.log", "..%5csecret.log", "%00", ".hidden", "none.log"):
        answer = client.get(f"/jobmanager/logs/{name}")
        assert answer.status_code in (400, 404), name
        assert "secret" not in answer.text.replace("secret.log", "")


def test_secret_values_of_the_configuration_are_hidden(gateway: FakeGateway, client: TestClient):
    authorization = "high-availability.zookeeper.client.authorization"
    gateway.config.set("s3.secret-key", "abc").set("rest.port", 8081).set(authorization, "digest:'a:b'")
    shown = {entry["key"]: entry["value"] for entry in client.get("/jobmanager/config").json()}
    assert shown == {"rest.port": "8081", "s3.secret-key": "******", authorization: "******"}


def test_config_tells_what_is_switched_off(gateway: FakeGateway, client: TestClient):
    gateway.config.set("web.cancel.enable", "false").set("web.refresh-interval", "10 s")
    config = client.get("/config").json()
    assert config["features"]["web-cancel"] is False
    assert config["refresh-interval"] == 10_000


def test_shutting_down_the_cluster_is_passed_on(gateway: FakeGateway, client: TestClient):
    assert client.delete("/cluster").json() == {}
    assert gateway.shut_down


def test_a_cluster_without_jobs_and_taskmanagers_answers_with_empty_lists(tmp_path: Path):
    client = TestClient(create_app(FakeGateway(str(tmp_path)), upload_dir=str(tmp_path / "u")))
    assert client.get("/jobs/overview").json() == {"jobs": []}
    assert client.get("/taskmanagers").json() == {"taskmanagers": []}
    assert client.get("/overview").json()["slots-total"] == 0


def test_answers_are_not_cached_and_carry_the_configured_origin(gateway: FakeGateway, tmp_path: Path):
    gateway.config.set("web.access-control-allow-origin", "https://ops.example")
    headers = TestClient(create_app(gateway, upload_dir=str(tmp_path / "u"))).get("/overview").headers
    assert headers["access-control-allow-origin"] == "https://ops.example"
    assert headers["cache-control"] == "no-store"


def test_many_subtasks_are_summed_and_summarised(gateway: FakeGateway, client: TestClient):
    gateway.views.append(taskmanager_view(3))
    graph = gateway.add_running_job(word_count_job("wide", parallelism=20))
    details = client.get(f"/jobs/{graph.job_graph.job_id}/vertices/{VERTEX}").json()
    assert len(details["subtasks"]) == 20
    records = details["aggregated"]["metrics"]["read-records"]
    assert records["sum"] == 20 * records["min"] == 120_000
    assert records["median"] == records["p95"] == 6_000
    grouped = client.get(f"/jobs/{graph.job_graph.job_id}/vertices/{VERTEX}/taskmanagers").json()["taskmanagers"]
    assert [row["status-counts"]["RUNNING"] for row in grouped] == [7, 7, 6]


# --- the dashboard's files --------------------------------------------------------------------------------------------


def test_the_dashboard_is_served_with_relative_addresses_only(client: TestClient):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    web = Path(create_app.__code__.co_filename).parent / "web"
    for path in web.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"(?:https?|wss?):|[\"'(]//", text) == [], f"{path.name} names a foreign address"
        assert 'src="/' not in text, path.name
        assert 'href="/' not in text, path.name
        assert client.get(f"/web/{path.name}").status_code == 200
    assert client.get("/web/app.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("name", ["..%2fserver.py", "%2e%2e%2fviews.py", "nothing.js", "app.js%00"])
def test_only_files_of_the_dashboard_are_served(client: TestClient, name: str):
    assert client.get(f"/web/{name}").status_code in (400, 404)
