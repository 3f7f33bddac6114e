"""Whether a function that has an ``open`` may keep state: only there it gets the RuntimeContext, which gives state out.

Told by the byte code of ``open``: where the context is asked for nothing but these, and handed to nobody, there is no
state, now or later. Whatever else stands there counts as state.
"""

from __future__ import annotations

import dis
import types
from typing import Any, Final

from engine.operators.functions import Function

__all__ = ["keeps_state"]

#: Methods of RuntimeContext that give neither state nor the context itself.
_WITHOUT_STATE: Final = frozenset(
    (
        "add_accumulator",
        "get_accumulator",
        "get_attempt_number",
        "get_broadcast_variable",
        "get_cached_file",
        "get_index_of_this_subtask",
        "get_job_parameter",
        "get_max_number_of_parallel_subtasks",
        "get_metrics_group",
        "get_number_of_parallel_subtasks",
        "get_task_name",
        "get_task_name_with_subtasks",
    )
)
#: Names by which a variable is reached that no instruction names.
_REACH_ALL: Final = frozenset(("_getframe", "currentframe", "eval", "exec", "locals", "vars"))


def keeps_state(function: Any) -> bool:
    """Return whether the function may use keyed state."""
    if not isinstance(function, Function) or type(function).open is Function.open:
        return False
    code = getattr(type(function).open, "__code__", None)
    if not isinstance(type(function).open, types.FunctionType) or code is None:
        return True
    return code.co_argcount != 2 or "open" in vars(function) or _gives_away(code, code.co_varnames[1])


def _gives_away(code: types.CodeType, argument: str) -> bool:
    if argument in code.co_cellvars or not _REACH_ALL.isdisjoint(code.co_names):
        return True
    instructions = list(dis.get_instructions(code))
    for at, instruction in enumerate(instructions):
        named = instruction.argval
        if named != argument and not (isinstance(named, tuple) and argument in named):
            continue
        following = instructions[at + 1]
        is_asked = following.opname in ("LOAD_ATTR", "LOAD_METHOD") and following.argval in _WITHOUT_STATE
        if not instruction.opname.startswith("LOAD_FAST") or named != argument or not is_asked:
            return True
    return False
