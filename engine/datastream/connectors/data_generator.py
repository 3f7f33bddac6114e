"""DataGeneratorSource: made-up records at a given rate (Flink's datagen connector; PyFlink has none)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from engine.connectors.column_generator import ColumnGeneratorSource
from engine.connectors.simple import DataGeneratorSpec
from engine.connectors.source import Boundedness
from engine.core.errors import ConfigError
from engine.core.type_info import TypeInformation
from engine.operators.base import OperatorSpec

__all__ = ["DataGeneratorSource"]


@final
class DataGeneratorSource:
    """Calls ``generator_function(index)`` for 0, 1, 2, … ``count`` None = for ever. ``rate_per_second`` is of all
    subtasks together; None = as fast as it goes."""

    def __init__(
        self,
        generator_function: Callable[[int], Any],
        count: int | None,
        rate_per_second: float | None = None,
        type_info: TypeInformation | None = None,
    ) -> None:
        if rate_per_second is not None and rate_per_second <= 0:
            raise ConfigError(f"DataGeneratorSource: rate_per_second is {rate_per_second}; expected more than 0.")
        self._spec = DataGeneratorSpec(generator_function, count, rate_per_second)
        self.boundedness = Boundedness.CONTINUOUS_UNBOUNDED if count is None else Boundedness.BOUNDED
        self.produced_type = type_info

    @staticmethod
    def of_columns(
        generator_function: Callable[[Any], Any], count: int | None, type_info: TypeInformation | None = None
    ) -> ColumnGeneratorSource:
        """Make columns: ``generator_function`` gets a numpy array of indexes and returns, for all of them at once, a
        dict or tuple of numpy or Arrow columns, or a RecordBatch. The columns are the engine's from then on and are not
        copied: return new arrays, not ones that the next call writes to."""
        return ColumnGeneratorSource(generator_function, count, type_info)

    def to_spec(self) -> OperatorSpec:
        return self._spec
