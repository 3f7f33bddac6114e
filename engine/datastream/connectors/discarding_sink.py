"""DiscardingSink: takes everything and keeps nothing (Flink's), for measuring what stands before it."""

from __future__ import annotations

from typing import Any, final

from engine.connectors.simple import DiscardSpec
from engine.operators.base import OperatorSpec

__all__ = ["DiscardingSink"]


@final
class DiscardingSink:
    def to_spec(self, type_info: Any) -> OperatorSpec:
        return DiscardSpec()
