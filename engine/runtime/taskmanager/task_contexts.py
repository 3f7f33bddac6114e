"""What the operators of one subtask get to know of where they run, and what their functions count."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, final

from engine.core.ids import OperatorID
from engine.graph.job_graph import ChainedOperator
from engine.operators.base import OperatorContext
from engine.operators.functions import RuntimeContext
from engine.protocol.control import OperatorEventSent, TaskDeployment
from engine.runtime.taskmanager.slot_environment import SlotEnvironment
from engine.runtime.taskmanager.task_metrics import merged_accumulators, user_metrics
from engine.runtime.taskmanager.task_restore import TaskRegistries

__all__ = ["TaskContexts"]


@final
class TaskContexts:
    """Makes the contexts of one task. ``wake``: called from any thread when an operator has something to do."""

    def __init__(
        self, deployment: TaskDeployment, env: SlotEnvironment, registries: TaskRegistries, wake: Callable[[], None]
    ) -> None:
        self._deployment = deployment
        self._env = env
        self._registries = registries
        self._wake = wake
        self._made: list[tuple[str, RuntimeContext]] = []  #: by operator name

    def of_task(self) -> RuntimeContext:
        """Return a context for what belongs to no operator."""
        return self._runtime_context(self._deployment.vertex_name)

    def _runtime_context(self, operator_name: str) -> RuntimeContext:
        deployment = self._deployment
        return RuntimeContext(
            task_name=deployment.vertex_name,
            subtask_index=deployment.subtask_index,
            parallelism=deployment.parallelism,
            max_parallelism=deployment.max_parallelism,
            attempt_number=deployment.attempt_number,
            job_parameters=self._env.job_parameters,
            cached_files=self._env.cached_files,
        )

    def of_operator(self, chained: ChainedOperator, memory_bytes: int) -> OperatorContext:
        """``memory_bytes``: the operator's share of managed memory."""
        env, deployment = self._env, self._deployment
        runtime_context = self._runtime_context(chained.name)
        self._made.append((chained.name, runtime_context))
        return OperatorContext(
            runtime_context=runtime_context,
            operator_id=chained.operator_id,
            operator_name=chained.name,
            job_id=deployment.job_id,
            job_name=deployment.job_name,
            config=env.init.config,
            clock=env.clock,
            work_dir=env.init.work_dir,
            memory_bytes=memory_bytes,
            send_event=lambda event: self._send_event(chained.operator_id, event),
            wake=self._wake,
            host=env.init.data_host,
            slot_shared=env.slot_shared,
            state=self._registries.make(chained.operator_id, chained.name),
        )

    def _send_event(self, operator_id: OperatorID, event: object) -> None:
        deployment = self._deployment
        data = pickle.dumps(event, 5)
        self._env.send(
            OperatorEventSent(deployment.job_id, deployment.attempt_id, operator_id, deployment.subtask_index, data)
        )

    def accumulators(self) -> bytes:
        return merged_accumulators(self._made)

    def metrics(self) -> dict[str, Any]:
        return user_metrics(self._made)
