"""Event times by a function of the record, on columns: what an assigner gives, as far as it compiles.

An assigner is called with the record and the time that it has so far, which is one more column here.
"""

from __future__ import annotations

import inspect
import types
from typing import Any, final

import numpy as np

from engine.core.arrow_arrays import arrow_of
from engine.core.records import ColumnBatch
from engine.operators.compile.callee import Callee
from engine.operators.compile.column_steps import shape_of
from engine.operators.compile.errors import Doubt, NotCompilable
from engine.operators.compile.expressions import Expression, Frame, Kind
from engine.operators.compile.guarded import Guarded
from engine.operators.compile.shapes import Shape, Translation
from engine.operators.compile.translate import translate_with
from engine.time.watermarks import TimestampAssigner
from engine.time.windows import TIME_MIN_MS

__all__ = ["StampFunction", "translate_assigner"]

Stamps = np.ndarray[Any, Any]


def translate_assigner(assigner: Any, shape: Shape) -> Translation:
    """Return the event time as an expression over the fields of a record and, behind them, the time that it has.

    Raises: NotCompilable with the reason.
    """
    translation = translate_with(_callee_of(assigner), shape, (Kind.INT,))
    result = translation.result
    if not isinstance(result, Expression) or result.kind not in (Kind.INT, Kind.FLOAT):
        raise NotCompilable("it gives no number")
    return translation


def _callee_of(assigner: Any) -> Callee:
    if isinstance(assigner, types.FunctionType):
        return Callee(assigner)
    kind = type(assigner)
    own = inspect.getattr_static(kind, "extract_timestamp", None)
    if not isinstance(assigner, TimestampAssigner) or not isinstance(own, types.FunctionType):
        raise NotCompilable(f"a {kind.__name__}, not a plain function")
    if "extract_timestamp" in vars(assigner) or kind.__getattribute__ is not object.__getattribute__:
        raise NotCompilable(f"extract_timestamp() of {kind.__name__} is not a plain method")
    return Callee(own, assigner)


@final
class StampFunction:
    """The assigner of one operator. ``reason``: why batches were left to the interpreter."""

    def __init__(self, assigner: Any) -> None:
        self._guarded = Guarded(lambda batch: translate_assigner(assigner, shape_of(batch)))

    @property
    def reason(self) -> str:
        return self._guarded.reason

    def apply(self, batch: ColumnBatch, known_ms: int) -> Stamps | None:
        """Return the times of a batch that is not empty, int64; None = ask the interpreter. ``known_ms``: the time of
        records that have none."""
        num_rows = len(batch)
        stamps = np.full(num_rows, known_ms, np.int64) if batch.timestamps_ms is None else batch.timestamps_ms
        frame = Frame([*batch.columns.columns, arrow_of(stamps)], num_rows)
        return self._guarded.run(batch, lambda translation: _millis(translation.result, frame))  # type: ignore[arg-type]


def _millis(times: Expression, frame: Frame) -> Stamps:
    """Return whole milliseconds. Raises: Doubt where the interpreter has to say what is wrong with one of them."""
    given = np.broadcast_to(times.evaluate(frame, None).values, frame.num_rows)
    if times.kind is Kind.FLOAT:
        # As int() does; not all that are near the ends of 64 bits can be told from those beyond.
        if not (np.abs(given) < 2.0**62).all():
            raise Doubt
        return given.astype(np.int64)
    stamps: Stamps = np.ascontiguousarray(given, np.int64)
    if int(stamps.min()) <= TIME_MIN_MS:
        raise Doubt
    return stamps
