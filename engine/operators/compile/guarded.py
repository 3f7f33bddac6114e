"""A function as it is translated for the records that come: anew for others, and left to the interpreter on doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, final

import numpy as np
import pyarrow as pa

from engine.core.records import ColumnBatch, Named
from engine.operators.compile.errors import Doubt, NotCompilable

__all__ = ["DOUBTS_MAX", "Guarded"]

#: So many batches in a row that are in doubt, and the function is left to the interpreter for good.
DOUBTS_MAX: Final = 5

T = TypeVar("T")
R = TypeVar("R")


@final
class Guarded(Generic[T]):
    """``translate``: gives the function for records as those of a batch, with the names from ``outside`` that it counts
    on, or raises NotCompilable. ``reason``: why it was left to the interpreter, last time or for good."""

    def __init__(self, translate: Callable[[ColumnBatch], T]) -> None:
        self._translate = translate
        self._schema: pa.Schema | None = None
        #: which records the schema's are: scalar, named, of a changelog
        self._is_like: tuple[bool, Named, bool] | None = None
        self._translation: T | None = None
        self.doubts_in_row = 0
        self.reason = ""

    def run(self, batch: ColumnBatch, compute: Callable[[T], R]) -> R | None:
        """Return what is computed of a batch that is not empty; None = ask the interpreter. ``compute`` raises Doubt
        where the interpreter might give something else, or an error."""
        translation = self._translation_for(batch)
        if translation is None or self.doubts_in_row >= DOUBTS_MAX:
            return None
        try:
            with np.errstate(all="ignore"):
                result = compute(translation)
        except (Doubt, pa.ArrowException):
            self.doubts_in_row += 1
            self.reason = "a value on which columns and interpreter may differ, or an error"
            if self.doubts_in_row >= DOUBTS_MAX:
                self.reason = f"{DOUBTS_MAX} batches in a row with {self.reason}"
            return None
        self.doubts_in_row = 0
        return result

    def _translation_for(self, batch: ColumnBatch) -> T | None:
        schema = batch.columns.schema
        is_like = batch.scalar, batch.named, batch.kinds is not None
        if is_like != self._is_like or (schema is not self._schema and not schema.equals(self._schema)):
            self._schema, self._is_like = schema, is_like
            self._compile(batch)
        translation: Any = self._translation
        if translation is not None and any(name.read() is not name.value for name in translation.outside):
            self._compile(batch)  # a global or a variable of the surrounding function has changed
        return self._translation

    def _compile(self, batch: ColumnBatch) -> None:
        self._translation = None
        try:
            self._translation = self._translate(batch)
        except NotCompilable as error:
            self.reason = str(error)
