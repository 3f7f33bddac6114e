"""The client context: what a program is told by whoever started it, and what it tells back."""

from __future__ import annotations

import json

import pytest

from engine.client.context import CONTEXT_VARIABLE, ClientContext, ProgramAbort
from engine.client.executors import execute_async
from engine.client.leader_lookup import rest_url
from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.ids import JobID
from engine.graph.job_graph import JobGraph, JobType


@pytest.fixture
def context_file(tmp_path, monkeypatch):
    def write(tree):
        path = tmp_path / "context.json"
        path.write_text(json.dumps(tree))
        monkeypatch.setenv(CONTEXT_VARIABLE, str(path))
        return tmp_path / "results.jsonl"

    return write


def graph():
    return JobGraph(JobID.generate(), "job", JobType.BATCH, (), (), plan={"nodes": []})


def test_a_program_started_by_itself_has_an_empty_context(monkeypatch):
    monkeypatch.delenv(CONTEXT_VARIABLE, raising=False)
    assert ClientContext.current() == ClientContext(Configuration(), "run", "")


def test_the_context_has_the_configuration_of_its_file(context_file):
    context_file({"configuration": {"parallelism.default": "3"}, "mode": "run"})
    assert ClientContext.current().configuration == Configuration({"parallelism.default": "3"})


def test_a_missing_context_file_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv(CONTEXT_VARIABLE, "/no/such/context.json")
    with pytest.raises(ConfigError, match=r"/no/such/context\.json"):
        ClientContext.current()


def test_every_submission_is_one_line_of_the_result_file(context_file, tmp_path):
    results = tmp_path / "results.jsonl"
    context_file({"result_file": str(results)})
    ClientContext.current().record_submission("a")
    ClientContext.current().record_submission("b")
    assert [json.loads(line) for line in results.read_text().splitlines()] == [{"job_id": "a"}, {"job_id": "b"}]


def test_a_program_whose_plan_is_wanted_ends_at_execute_with_its_plan_recorded(context_file, tmp_path):
    results = tmp_path / "results.jsonl"
    context_file({"mode": "plan", "result_file": str(results)})
    with pytest.raises(ProgramAbort):
        execute_async(graph(), {}, Configuration())
    assert json.loads(results.read_text()) == {"plan": {"nodes": []}}


def test_the_abort_is_not_caught_as_an_exception():
    assert not issubclass(ProgramAbort, Exception)


def test_an_unknown_target_is_an_error_with_the_known_ones(monkeypatch):
    monkeypatch.delenv(CONTEXT_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"execution\.target is 'moon'; expected local, remote, yarn-session"):
        execute_async(graph(), {}, Configuration({"execution.target": "moon"}))


def test_the_rest_address_falls_back_to_the_jobmanagers():
    assert rest_url(Configuration({"jobmanager.rpc.address": "jm"})) == "http://jm:8081"
    assert rest_url(Configuration({"rest.address": "::1", "rest.port": "99"})) == "http://[::1]:99"
