"""Bulk iterations of the DataSet API. How they run: ``operators/iteration`` and ``operators/rounds``."""

from __future__ import annotations

import secrets
from typing import final

from engine.core.errors import ProgramError
from engine.dataset.data_set import DataSet
from engine.dataset.plan import FORWARD, Loop, Node, Port
from engine.operators.batch_simple import PassSpec
from engine.operators.iteration import RESULT_TAG, LoopHeadSpec, LoopIntakeSpec, LoopTailSpec

__all__ = ["IterativeDataSet"]


@final
class IterativeDataSet(DataSet):
    """The data of the current superstep. Build the next from it, then call ``close_with``."""

    _loop: Loop
    _max_iterations: int

    @classmethod
    def begin(cls, initial: DataSet, max_iterations: int) -> IterativeDataSet:
        if not isinstance(max_iterations, int) or max_iterations < 1:
            raise ProgramError(f"iterate({max_iterations!r}): expected a whole number of at least 1.")
        loop_id = secrets.token_hex(8)
        head = Node("Bulk Iteration", LoopHeadSpec(loop_id, max_iterations, ("feedback",)), kind="Iteration")
        intake = Node("Initial Solution", LoopIntakeSpec(loop_id), initial.inputs(), follows=head, is_sink=True)
        made = cls(initial.get_execution_environment(), Port(head))
        made._loop = head.loop = intake.loop = Loop(loop_id, head, intake)
        made._max_iterations = max_iterations
        return made

    def get_max_iterations(self) -> int:
        return self._max_iterations

    def close_with(self, result: DataSet, termination_criterion: DataSet | None = None) -> DataSet:
        """Feed ``result`` back into the next superstep; return it as it is after the last one.

        Ends after the maximum of iterations, or as soon as ``termination_criterion`` is empty in a superstep.
        """
        loop = self._loop
        if loop.is_closed:
            raise ProgramError("close_with was already called on this iteration; make another one with iterate().")
        self.check_same_env(result, "close_with")
        self._add_tail("feedback", result)
        if termination_criterion is not None:
            self.check_same_env(termination_criterion, "close_with")
            self._add_tail("termination", termination_criterion)
            loop.head.spec = LoopHeadSpec(loop.loop_id, self._max_iterations, ("feedback", "termination"))
        loop.is_closed = True
        # A node of its own behind the head's side output, so that the head's other consumers are all in the loop.
        node = Node("Iteration Result", PassSpec(), [(0, Port(loop.head, RESULT_TAG), FORWARD)], follows=loop.head)
        return DataSet(self._env, Port(node))

    def _add_tail(self, tail: str, data: DataSet) -> None:
        loop = self._loop
        spec = LoopTailSpec(loop.loop_id, tail)
        node = Node(f"Iteration Tail ({tail})", spec, data.inputs(), follows=loop.head, is_sink=True, loop=loop)
        loop.tails.append(node)
