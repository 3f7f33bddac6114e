"""What a task says of itself to a leader that may take it over."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from engine.core.ids import ExecutionAttemptID, OperatorID
from engine.protocol.checkpoint import StopMode
from engine.protocol.lifecycle import ExecutionState
from engine.runtime.taskmanager.stream_task import StreamTask
from engine.runtime.taskmanager.task_checkpoints import TaskCheckpoints

ATTEMPT = ExecutionAttemptID(f"{'b' * 32}_0_4")


class Reporting:
    def report(self) -> object:
        return ("splits", 3)


class Silent:
    def report(self) -> object | None:
        return None


def checkpoints(**fields: Any) -> TaskCheckpoints:
    made = TaskCheckpoints.__new__(TaskCheckpoints)
    made._stop, made.stopped = None, StopMode.NONE
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def task(**fields: Any) -> StreamTask:
    made = StreamTask.__new__(StreamTask)
    made.deployment = SimpleNamespace(attempt_id=ATTEMPT)  # type: ignore[assignment]
    made.state = ExecutionState.RUNNING
    made._source_ended = made._is_finished = False
    made._gate = SimpleNamespace(is_ended=False)  # type: ignore[assignment]
    made._checkpoints = checkpoints()
    made._registries = SimpleNamespace(is_restoring=False)  # type: ignore[assignment]
    chained = [SimpleNamespace(operator_id=OperatorID(one * 32)) for one in "cd"]
    made._chain = SimpleNamespace(spec=SimpleNamespace(operators=chained), operators=[Reporting(), Silent()])  # type: ignore[assignment]
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_task_that_runs_has_no_objection_and_says_what_its_operators_say():
    said = task().report()
    assert (said.attempt_id, said.state, said.objection) == (ATTEMPT, ExecutionState.RUNNING, "")
    assert {id_: pickle.loads(data) for id_, data in said.reports.items()} == {"c" * 32: ("splits", 3)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"_source_ended": True}, "come to its end"),
        ({"_is_finished": True}, "come to its end"),
        ({"_gate": SimpleNamespace(is_ended=True)}, "come to its end"),
        ({"_checkpoints": checkpoints(_stop=(7, StopMode.SUSPEND))}, "stopped with a savepoint"),
        ({"_checkpoints": checkpoints(stopped=StopMode.DRAIN)}, "stopped with a savepoint"),
        ({"_registries": SimpleNamespace(is_restoring=True)}, "not restored"),
    ],
)
def test_a_task_that_cannot_go_on_under_another_leader_objects(fields, words):
    said = task(**fields).report()
    assert words in said.objection
    assert said.reports == {}


def test_a_task_that_does_not_run_yet_says_so():
    said = task(state=ExecutionState.INITIALIZING, _chain=None, _checkpoints=None, _gate=None).report()
    assert (said.state, said.reports) == (ExecutionState.INITIALIZING, {})
