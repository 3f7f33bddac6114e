"""What a task finds again of the checkpoint that it starts from: a registry for each operator, and a last check."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import final

from engine.checkpoint.restored_state import HandleRestoredState
from engine.core.config import Configuration
from engine.core.errors import ProgramError
from engine.core.ids import OperatorID
from engine.core.options import CheckpointingOptions
from engine.protocol.control import TaskDeployment
from engine.state.key_groups import key_group_range
from engine.state.parts import OperatorStateRegistry

__all__ = ["TaskRegistries"]


@final
class TaskRegistries:
    """The registries of the operators of one task, in the order of the chain once all are open."""

    def __init__(self, deployment: TaskDeployment, work_dir: str) -> None:
        self._deployment = deployment
        self._work_dir = work_dir
        self._made: dict[OperatorID, tuple[str, OperatorStateRegistry, HandleRestoredState | None]] = {}
        self.key_groups = key_group_range(
            deployment.subtask_index, deployment.parallelism, max(deployment.max_parallelism, deployment.parallelism)
        )

    def make(self, operator_id: OperatorID, operator_name: str) -> OperatorStateRegistry:
        """Return the registry for an operator that is about to be opened."""
        deployment = self._deployment
        restore = None if deployment.restore is None else deployment.restore.operators.get(operator_id)
        restored = None
        if restore is not None:
            restored = HandleRestoredState(
                restore,
                operator_name=operator_name,
                subtask_index=deployment.subtask_index,
                parallelism=deployment.parallelism,
                key_groups=self.key_groups,
                work_dir=os.path.join(self._work_dir, f"restored-{deployment.attempt_id}-{operator_id[:8]}"),
            )
        registry = OperatorStateRegistry(restored)
        registry.restored_from = 0 if deployment.restore is None else deployment.restore.checkpoint_id
        self._made[operator_id] = (operator_name, registry, restored)
        return registry

    def in_order(self, operator_ids: Iterable[OperatorID]) -> list[tuple[OperatorID, OperatorStateRegistry]]:
        return [(operator_id, self._made[operator_id][1]) for operator_id in operator_ids]

    def restore_some(self) -> bool:
        """Go on with what was not taken up when the operators were opened; return whether more is left."""
        for _, registry, _ in self._made.values():
            while registry.late:
                if registry.late[-1].restore_some():
                    return True
                registry.late.pop()
        return False

    @property
    def is_restoring(self) -> bool:
        return any(registry.late for _, registry, _ in self._made.values())

    def check_all_claimed(self, config: dict[str, str]) -> None:
        """All operators are open. Raises: ProgramError when state has been left over, unless that is allowed."""
        if self._deployment.restore is None:
            return
        left = []
        for operator_id, (name, registry, restored) in self._made.items():
            parts = [f"keyed state {part!r}" for part in registry.unused_parts()]
            if restored is not None and restored.has_lists() and registry.lists is None:
                parts.append("operator state")
            if parts:
                left.append(f"operator {name!r} (id {operator_id}) has no use for its {' and '.join(parts)}")
        if left and not Configuration(config).get(CheckpointingOptions.ALLOW_NON_RESTORED):
            raise ProgramError(
                f"Checkpoint {self._deployment.restore.checkpoint_id} holds state that the program leaves over: "
                f"{'; '.join(left)}. Give the operators the uids they had, or leave the state out with "
                "--allowNonRestoredState (-n)."
            )
