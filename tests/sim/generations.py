"""Which attempt of which JobMaster something is of: attempts are counted anew by each leader, generations never. With
high availability leaders count on, and one may go on with the attempt of another.

Records and events carry the generation of whoever made them; whoever gets them compares it with its own.
"""

from __future__ import annotations

from typing import Any

from tests.sim.world import SimulationError, current

__all__ = ["check_same", "fail", "of_coordinator", "of_task", "resumes", "starts_once"]


def _generation(job_id: str, leader: int, attempt: int) -> int:
    known: dict[tuple[str, int, int], int] = current().parts.setdefault("generations", {})
    leader = 0 if current().parts["leaders count on"] else leader
    return known.setdefault((job_id, leader, attempt), len(known))


def of_task(ctx: Any) -> int:
    """``ctx``: of an operator in a slot. A slot belongs to the leader that asked for it."""
    leader = ctx.slot_shared["sim"].leader
    return _generation(ctx.job_id, leader, ctx.runtime_context.get_attempt_number())


def of_coordinator(ctx: Any) -> int:
    """``ctx``: of an operator's coordinator, whose code runs now."""
    return _generation(ctx.job_id, current().parts["acting leader"], ctx.attempt_number)


def fail(text: str) -> None:
    """Fail the simulation, whatever the code that called us does with the exception."""
    error = SimulationError(text)
    current().fail(error)
    raise error


def check_same(who: str, found: int, expected: int) -> None:
    if found != expected:
        fail(f"{who}: something of generation {found} reached generation {expected}")


def resumes(ctx: Any, who: str) -> None:
    """A coordinator goes on with the newest attempt, which another leader has begun."""
    newest: dict[tuple[str, str], tuple[int, int]] = current().parts.setdefault("newest attempts", {})
    key, this = (ctx.job_id, who), (current().parts["acting leader"], ctx.attempt_number)
    is_behind = newest.get(key, (-1, -1)) >= this and who != "enumerator"  # of which a job may have several
    if newest.get(key, (-1, -1))[1] != this[1] or is_behind:
        fail(f"{who} of (leader, attempt) {this} goes on with {newest.get(key)}")
    newest[key] = this


def starts_once(ctx: Any, who: str) -> None:
    """A coordinator of an attempt starts once, after those of all attempts before and of all leaders before."""
    newest: dict[tuple[str, str], tuple[int, int]] = current().parts.setdefault("newest attempts", {})
    key, this = (ctx.job_id, who), (current().parts["acting leader"], ctx.attempt_number)
    if newest.get(key, (-1, -1)) >= this and who != "enumerator":
        fail(f"{who} of (leader, attempt) {this} starts after that of {newest[key]}")
    newest[key] = max(this, newest.get(key, (-1, -1)))
