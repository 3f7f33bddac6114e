"""What a slot says of a task when the JobManager is gone and another one may go on with it.

Not here: whether that may be (``runtime/jobmanager/takeover``).
"""

from __future__ import annotations

import pickle

from engine.protocol.control import RunningTask, TaskDeployment
from engine.protocol.lifecycle import ExecutionState
from engine.runtime.taskmanager.chain_runner import OperatorChain

__all__ = ["running_task"]


def running_task(
    deployment: TaskDeployment, state: ExecutionState, chain: OperatorChain | None, objection: str
) -> RunningTask:
    """Return what is told of one task. ``objection``: why it cannot go on under another JobMaster."""
    reports = {}
    if chain is not None and state is ExecutionState.RUNNING and not objection:
        for chained, operator in zip(chain.spec.operators, chain.operators, strict=True):
            report = operator.report()
            if report is not None:
                reports[chained.operator_id] = pickle.dumps(report, 5)
    return RunningTask(deployment.attempt_id, state, objection=objection, reports=reports)
