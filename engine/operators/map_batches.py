"""``map_batches``: a user's function of whole batches of columns, in the library of its choice.

Columns come as an Arrow RecordBatch, a pandas or polars DataFrame, or a dict of numpy arrays; results may be any of
them, whatever came in. For numpy and pandas integers among which are nulls are objects, with None, as both would make
floats of them, which have not all integers. Functions never see dictionaries, which columns may have or not from batch
to batch; what they return may have some (categoricals). Results are held to the declared type: fields by their names
where it has names, else in order.

Not here: functions of single records that are compiled to columns (``compile``).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.dictionaries import Tidying, is_text, plain_columns
from engine.core.errors import ProgramError
from engine.core.records import Batch, ColumnBatch, Row, arrow_values
from engine.core.type_info import RowTypeInfo, TupleTypeInfo, TypeInformation
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.without_kinds import check_has_no_kinds

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BATCH_FORMATS", "MapBatchesSpec", "check_batch_format"]

BATCH_FORMATS: Final = ("pyarrow", "pandas", "polars", "numpy")


def check_batch_format(batch_format: str) -> None:
    """Raises: ProgramError for an unknown one, or one whose library is not there."""
    if batch_format not in BATCH_FORMATS:
        raise ProgramError(
            f"map_batches(batch_format={batch_format!r}): expected one of {', '.join(map(repr, BATCH_FORMATS))}."
        )
    if importlib.util.find_spec(batch_format) is None:
        raise ProgramError(
            f"map_batches(batch_format={batch_format!r}) needs {batch_format}, which is not installed: "
            f"pip install {batch_format}, here and wherever the job runs, or take 'pyarrow' or 'numpy'."
        )


@final
@dataclass(frozen=True)
class MapBatchesSpec(OperatorSpec):
    """``input_type``: of records that come as rows; None = told from the values. ``output_type`` None = as returned."""

    function: Any
    batch_format: str = "pyarrow"
    input_type: TypeInformation | None = None
    output_type: TypeInformation | None = None

    def build(self) -> Operator:
        return _MapBatchesOperator(self)

    def describe(self) -> str:
        return "vectorised"


@final
class _MapBatchesOperator(Operator):
    takes_kinds = True  # to refuse them

    def __init__(self, spec: MapBatchesSpec) -> None:
        self._spec = spec
        self._function = BoundFunction(spec.function, "map")
        self._tidying = Tidying()

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        own, given = self._spec.output_type, self._spec.input_type
        self._fields = None if own is None else own.arrow_fields()
        self._input_fields = None if given is None else given.arrow_fields()
        self._is_scalar = own is not None and not isinstance(own, TupleTypeInfo)
        self._function.open(ctx)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        check_has_no_kinds(batch, "map_batches()", "columns")
        try:
            given = _given(_columns_of(batch, self._input_fields), self._spec.batch_format)
            results = [self._fitted(result) for result in _record_batches(self._function.call(given))]
        except BaseException as error:
            raise self._function.error(error, f"a batch of {len(batch)} records") from error
        stamps = batch.timestamps_ms
        is_whole = stamps is not None and sum(result.num_rows for result in results) == len(batch)
        start = 0
        for result in results:
            if result.num_rows:
                own = _stamps(stamps[start : start + result.num_rows]) if is_whole and stamps is not None else None
                is_named = isinstance(self._spec.output_type, RowTypeInfo)
                self.out.emit(ColumnBatch(result, own, self._is_scalar, is_named))
            start += result.num_rows

    def _fitted(self, result: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns as the output type has them. Raises TypeError with what came and what was expected."""
        import pyarrow as pa

        fields = self._fields
        if fields is None:
            return self._tidying.of(result)
        names = [field.name for field in fields]
        columns = result.columns
        if isinstance(self._spec.output_type, RowTypeInfo) and set(names) <= set(result.schema.names):
            columns = [result.column(name) for name in names]
        elif len(columns) != len(fields):
            raise TypeError(
                f"map_batches returned the columns {', '.join(result.schema.names)}; its output type has "
                f"{len(fields)}: {', '.join(names)}."
            )
        fitted = [_cast(column, field) for column, field in zip(columns, fields, strict=True)]
        return self._tidying.of(pa.RecordBatch.from_arrays(fitted, names=names))

    def close(self) -> None:
        self._function.close()


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    import pyarrow as pa

    try:
        if pa.types.is_dictionary(column.type) and is_text(column.type.value_type) and is_text(field.type):
            return _with_values(column, column.dictionary.cast(field.type))
        return column if column.type == field.type else column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TypeError(
            f"map_batches returned {column.type} in column {field.name}, which is no {field.type} as its output type "
            f"says: {error}"
        ) from error


def _with_values(column: pa.Array, values: pa.Array) -> pa.Array:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(column.indices, values, safe=False)


def _stamps(stamps: Any) -> Any:
    import numpy as np

    return np.asarray(stamps, np.int64)


def _columns_of(batch: Batch, fields: list[pa.Field] | None) -> pa.RecordBatch:
    import pyarrow as pa

    if isinstance(batch, ColumnBatch):
        columns = plain_columns(batch.columns)
        if fields is None or not _are_wider(columns.schema.types, [field.type for field in fields]):
            return columns
        batch = batch.to_rows()
    rows = batch.rows
    names = None
    if rows and isinstance(rows[0], Row):
        names = list(rows[0].as_dict()) if rows[0].has_field_names() else None
        rows = [tuple(row) for row in rows]
    values = list(zip(*rows, strict=True)) if rows and isinstance(rows[0], (tuple, list)) else [rows]
    if fields is not None and len(fields) == len(values):
        types = [field.type for field in fields]
        arrays = [pa.array(arrow_values(column, kind), kind) for column, kind in zip(values, types, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, names=[field.name for field in fields])
    names = names or [f"f{i}" for i in range(len(values))]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in values], names=names)


def _are_wider(kinds: list[pa.DataType], declared: list[pa.DataType]) -> bool:
    """Whether columns have numbers of 64 bits where others are declared: what functions that compile give. Then the
    function gets those that it would get of rows."""
    import pyarrow as pa

    narrower = {
        pa.int64(): {pa.int8(), pa.int16(), pa.int32(), pa.float32(), pa.float64()},
        pa.float64(): {pa.float32()},
    }
    return len(kinds) == len(declared) and any(
        own in narrower.get(kind, ()) for kind, own in zip(kinds, declared, strict=True)
    )


def _given(columns: pa.RecordBatch, batch_format: str) -> Any:
    match batch_format:
        case "pandas":
            return columns.to_pandas(integer_object_nulls=True)
        case "polars":
            import polars

            return polars.from_arrow(columns)
        case "numpy":
            return {name: _numpy_of(column) for name, column in zip(columns.schema.names, columns.columns, strict=True)}
    return columns


def _numpy_of(column: pa.Array) -> Any:
    import numpy as np
    import pyarrow as pa

    if column.null_count and pa.types.is_integer(column.type):
        return np.array(column.to_pylist(), object)
    return column.to_numpy(zero_copy_only=False)


def _record_batches(result: Any) -> list[pa.RecordBatch]:
    import pyarrow as pa

    library = type(result).__module__.partition(".")[0]
    if result is None:
        return []
    if isinstance(result, pa.RecordBatch):
        return [result]
    if isinstance(result, pa.Table):
        return result.to_batches()  # type: ignore[no-any-return]
    if isinstance(result, dict):
        return [pa.RecordBatch.from_pydict({str(name): pa.array(column) for name, column in result.items()})]
    if library == "pandas" and hasattr(result, "columns"):
        return pa.Table.from_pandas(result, preserve_index=False).to_batches()  # type: ignore[no-any-return]
    if library == "polars" and hasattr(result, "to_arrow") and hasattr(result, "columns"):
        return [_with_plain_texts(one) for one in result.to_arrow().to_batches()]
    raise TypeError(
        f"map_batches returned a {type(result).__name__}; expected a pyarrow RecordBatch or Table, a pandas or polars "
        "DataFrame, or a dict of columns."
    )


def _with_plain_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Polars gives texts as large ones or views, which other operators would not take for the texts they know."""
    import pyarrow as pa

    def plain(column: pa.Array) -> pa.Array:
        kind = column.type
        if pa.types.is_dictionary(kind):
            return _with_values(column, plain(column.dictionary))
        return column.cast(pa.string()) if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else column

    return pa.RecordBatch.from_arrays(list(map(plain, batch.columns)), names=batch.schema.names)
