"""How the story names things: short and alike in every run."""

from __future__ import annotations

import re
from typing import Any

from engine.protocol import control

__all__ = ["LEGEND", "describe", "format_story", "short"]

LEGEND = """\
time    simulated seconds, then the process (jm, tm-N, tm-N/slot.use), what it did, and to what
send    a control message leaves; receive: it is taken up at the other end (heartbeats are left out)
task    vertex.subtask#attempt; alloc: first digits of an allocation
FAULT   what the simulation did to the cluster; faults: none follow
"""


def short(attempt_id: str) -> str:
    """``<vertex>_<subtask>_<attempt>`` → ``1a2b.0#3``."""
    vertex, subtask, attempt = attempt_id.rsplit("_", 2)
    return f"{vertex[:4]}.{subtask}#{attempt}"


def describe(message: Any) -> str:
    name = type(message).__name__
    match message:
        case control.DeployTask(allocation_id, task):
            restored = "" if task.restore is None else f" from checkpoint {task.restore.checkpoint_id}"
            return f"{name} {short(task.attempt_id)} {task.vertex_name} in {allocation_id[:6]}{restored}"
        case control.TaskStateChanged():
            why = "" if message.error is None else f": {_one_line(message.error.message)}"
            return f"{name} {short(message.attempt_id)} {message.state.name}{why}"
        case control.SlotLost() | control.SlotAllocationFailed():
            return f"{name} {message.allocation_id[:6]} {message.slot_id}: {_one_line(message.error.message)}"
        case control.OperatorEventSent() | control.SendOperatorEvent():
            return f"{name} {short(message.attempt_id)} {len(message.event)} bytes"
    parts = [name]
    if hasattr(message, "allocation_id"):
        parts.append(message.allocation_id[:6])
    if hasattr(message, "slot_id"):
        parts.append(str(message.slot_id))
    if hasattr(message, "attempt_id"):
        parts.append(short(message.attempt_id))
    if hasattr(message, "checkpoint_id"):
        parts.append(f"checkpoint {message.checkpoint_id}")
    if hasattr(message, "reason"):
        parts.append(_one_line(str(message.reason)))
    return " ".join(parts)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:110]


def format_story(story: list[tuple[float, str, str, str]], lines_max: int | None = None) -> str:
    shown = story if lines_max is None else story[-lines_max:]
    lines = [f"{when:11.6f}  {who:<12} {what:<10} {detail}" for when, who, what, detail in shown]
    if len(shown) < len(story):
        lines.insert(0, f"… {len(story) - len(shown)} lines before")
    return LEGEND + "\n" + "\n".join(lines)
