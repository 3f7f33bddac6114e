"""Joins, co-groups and crosses: the builders between ``a.join(b)`` and a DataSet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self, final

from engine.core.errors import ProgramError
from engine.dataset.data_set import DataSet, require
from engine.dataset.keys import as_selector
from engine.dataset.plan import BROADCAST, FORWARD, Node, Port, hash_by
from engine.dataset.vocabulary import JoinHint
from engine.operators.base import OperatorSpec
from engine.operators.batch_co_group import CoGroupSpec
from engine.operators.batch_join import CrossSpec, HashJoinSpec, Projection
from engine.operators.functions import Function

__all__ = ["CoGroupBuilder", "CrossDataSet", "JoinBuilder", "JoinDataSet"]

_FIRST_HINTS: Final = (JoinHint.BROADCAST_HASH_FIRST, JoinHint.REPARTITION_HASH_FIRST)


class _KeysOfTwo:
    """``where(keys of the first).equal_to(keys of the second)``."""

    def __init__(self, first: DataSet, second: DataSet, what: str) -> None:
        self._first = first
        self._second = second
        self._what = what
        self._first_key: Any = None

    def where(self, *keys: Any) -> Self:
        self._first_key = as_selector(keys, f"{self._what}(…).where")
        return self

    def _second_key(self, keys: tuple[Any, ...]) -> Any:
        if self._first_key is None:
            raise ProgramError(f"{self._what}: say .where(key of the first) before .equal_to(key of the second).")
        return as_selector(keys, f"{self._what}(…).equal_to")


@final
class JoinBuilder(_KeysOfTwo):
    def __init__(
        self, first: DataSet, second: DataSet, *, what: str, hint: JoinHint, keep_first: bool, keep_second: bool
    ) -> None:
        super().__init__(first, second, what)
        self._hint = hint
        self._keep = (keep_first, keep_second)
        outer_side_broadcast = (hint is JoinHint.BROADCAST_HASH_FIRST and keep_first) or (
            hint is JoinHint.BROADCAST_HASH_SECOND and keep_second
        )
        if outer_side_broadcast:
            # Each subtask would see the whole side and emit its unmatched records again.
            raise ProgramError(f"{what}: {hint.name} cannot be used, the outer side must not be sent to all subtasks.")

    def equal_to(self, *keys: Any) -> JoinDataSet:
        second_key = self._second_key(keys)
        # The build side is held: prefer the one whose unmatched records are not needed, as probing emits at once.
        keep_first, keep_second = self._keep
        build_side = 0 if self._hint in _FIRST_HINTS or (keep_second and not keep_first) else 1
        spec = HashJoinSpec(
            self._first_key, second_key, keep_first=keep_first, keep_second=keep_second, build_side=build_side
        )
        match self._hint:
            case JoinHint.BROADCAST_HASH_FIRST:
                inputs = [*self._first.inputs(BROADCAST, 0), *self._second.inputs(FORWARD, 1)]
            case JoinHint.BROADCAST_HASH_SECOND:
                inputs = [*self._first.inputs(FORWARD, 0), *self._second.inputs(BROADCAST, 1)]
            case _:
                inputs = [
                    *self._first.inputs(hash_by(self._first_key), 0),
                    *self._second.inputs(hash_by(second_key), 1),
                ]
        return JoinDataSet(self._first, Node("Join", spec, inputs))


class _PairsDataSet(DataSet):
    """Pairs of records until a function or a projection is given."""

    _what = "join"

    def __init__(self, source: DataSet, node: Node) -> None:
        super().__init__(source._env, Port(node))
        self._pairs_node = node
        self._projected: tuple[tuple[int, int | str | None], ...] = ()

    def _with(self, function: Any) -> Node:
        own = self._pairs_node
        return Node(own.name, self._spec_with(own.spec, function), own.inputs, own.parallelism, own.follows)

    def _spec_with(self, spec: OperatorSpec, function: Any) -> OperatorSpec:
        raise NotImplementedError

    def using(self, operator: Callable[..., Any] | Function) -> DataSet:
        """Call ``operator(first, second)`` for each pair; with a third parameter, a collector takes any number of
        results, as a FlatJoinFunction's return value does."""
        require(f"{self._what}(…).using", operator, "join", "cross")
        return DataSet(self._env, Port(self._with(operator)))

    with_ = using
    apply = using

    def project_first(self, *fields: int | str) -> Self:
        """Keep these fields of the first record; without fields the whole record."""
        return self._project(0, fields)

    def project_second(self, *fields: int | str) -> Self:
        return self._project(1, fields)

    def _project(self, side: int, fields: tuple[int | str, ...]) -> Self:
        if any(isinstance(field, bool) or not isinstance(field, int | str) for field in fields):
            raise ProgramError(f"{self._what}: projection of {fields!r}; expected field positions or names.")
        chosen = (*self._projected, *((side, field) for field in fields or (None,)))
        made = type(self)(self, self._with(Projection(chosen)))
        made._projected = chosen
        return made


@final
class JoinDataSet(_PairsDataSet):
    def _spec_with(self, spec: OperatorSpec, function: Any) -> OperatorSpec:
        assert isinstance(spec, HashJoinSpec)
        return HashJoinSpec(
            spec.first_key,
            spec.second_key,
            function,
            keep_first=spec.keep_first,
            keep_second=spec.keep_second,
            build_side=spec.build_side,
        )


@final
class CrossDataSet(_PairsDataSet):
    _what = "cross"

    @classmethod
    def of(cls, first: DataSet, second: DataSet, build_side: int) -> CrossDataSet:
        """Return all pairs; the build side is sent to all subtasks."""
        how = (BROADCAST, FORWARD) if build_side == 0 else (FORWARD, BROADCAST)
        inputs = [*first.inputs(how[0], 0), *second.inputs(how[1], 1)]
        return cls(first, Node("Cross", CrossSpec(None, build_side), inputs))

    def _spec_with(self, spec: OperatorSpec, function: Any) -> OperatorSpec:
        assert isinstance(spec, CrossSpec)
        return CrossSpec(function, spec.build_side)


@final
class CoGroupBuilder(_KeysOfTwo):
    def __init__(self, first: DataSet, second: DataSet) -> None:
        super().__init__(first, second, "co_group")
        self._keys: tuple[Any, Any] | None = None

    def equal_to(self, *keys: Any) -> CoGroupBuilder:
        self._keys = (self._first_key, self._second_key(keys))
        return self

    def using(self, operator: Callable[..., Any] | Function) -> DataSet:
        """Call ``operator(records of the first, records of the second)`` for each key of either; with a third
        parameter results go to a collector."""
        if self._keys is None:
            raise ProgramError("co_group: say .where(key of the first).equal_to(key of the second) before .using(…).")
        require("co_group(…).using", operator, "co_group")
        first_key, second_key = self._keys
        inputs = [*self._first.inputs(hash_by(first_key), 0), *self._second.inputs(hash_by(second_key), 1)]
        node = Node("CoGroup", CoGroupSpec(first_key, second_key, operator), inputs)
        return DataSet(self._first.get_execution_environment(), Port(node))

    with_ = using
    apply = using
