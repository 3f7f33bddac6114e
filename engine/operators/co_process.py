"""Process functions with two inputs, and map and flat_map on two keyed inputs. Run by ``process.ProcessOperator``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorSpec
from engine.operators.process import ProcessInput, ProcessOperator

__all__ = ["CoProcessSpec"]


@final
@dataclass(frozen=True)
class CoProcessSpec(OperatorSpec):
    """A (Keyed)CoProcessFunction, CoMapFunction or CoFlatMapFunction by ``method``; ``key_selectors``: both or none.

    Keyed state and timers of a key are one for both inputs.
    """

    function: Any
    key_selectors: tuple[Any, Any] | None = None
    output_type: TypeInformation | None = None
    method: str = "process_element"
    num_inputs = 2

    def build(self) -> Operator:
        selectors = self.key_selectors or (None, None)
        inputs = tuple(ProcessInput(f"{self.method}{i}", selector) for i, selector in enumerate(selectors, 1))
        return ProcessOperator(self.function, inputs, self.output_type)

    def describe(self) -> str:
        return "interpreted (it is called for each record)"
