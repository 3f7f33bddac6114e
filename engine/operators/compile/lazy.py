"""Modules that are imported at their first use: ``explain`` translates functions on clients, which have no columns."""

from __future__ import annotations

import importlib
from typing import Any, final

__all__ = ["LazyModule"]


@final
class LazyModule:
    """Stands for the module; what was asked for once is found at once."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        found = getattr(importlib.import_module(self._name), name)
        setattr(self, name, found)
        return found
