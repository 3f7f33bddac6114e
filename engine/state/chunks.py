"""State as bytes and back: one chunk is what a state or timer service holds for one key group."""

from __future__ import annotations

import pickle
from typing import Any

from engine.core import user_code

__all__ = ["dump_chunk", "load_chunk"]


def dump_chunk(content: Any, what: str) -> bytes:
    """Raises: ProgramError that names ``what`` when something in it cannot be pickled."""
    try:
        return pickle.dumps(content, 5)
    except Exception:  # classes of the user's program are not importable here: they go by value
        return user_code.dumps(content, what)


def load_chunk(data: bytes) -> Any:
    return pickle.loads(data)
