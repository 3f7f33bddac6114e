"""Which type is read and written as columns by which format: the other half of ``test_types_on_columns``."""

from __future__ import annotations

import pyarrow as pa
import pytest

from engine.core.errors import EngineError
from engine.core.type_info import Types
from engine.datastream.formats.csv import CsvReaderFormat, CsvSchema
from engine.datastream.formats.json import JsonReaderFormat
from engine.datastream.formats.parquet import ParquetBulkWriters, ParquetColumnarRowInputFormat
from engine.formats import column_lines, column_texts
from tests.unit.operators.test_types_on_columns import NO_COLUMN, TYPES

DECLARED = {name: declared for name, (declared, _, _) in TYPES.items()} | NO_COLUMN
REFUSED = "refused"


def csv_of(declared):
    builder = CsvSchema.builder()
    for add in (builder.add_number_column, builder.add_temporal_column):
        try:
            return CsvReaderFormat.for_schema(add("x", declared).build())
        except EngineError as error:
            refused = error
    if declared in (Types.STRING(), Types.BOOLEAN()):
        return builder
    if declared == DECLARED["ARRAY"]:
        return builder.add_array_column("x", element_type=Types.LONG())
    raise refused


FORMATS = {
    "CSV in": csv_of,
    "JSON in": lambda declared: JsonReaderFormat.for_row_type(Types.ROW_NAMED(["x"], [declared])),
    "Parquet in": lambda declared: ParquetColumnarRowInputFormat(Types.ROW_NAMED(["x"], [declared])),
    "Parquet out": lambda declared: ParquetBulkWriters.for_row_type(Types.ROW_NAMED(["x"], [declared])),
}
#: BIG_DEC of JSON and for Parquet wants a scale, which an Arrow schema says.
NOT_READ = {
    **{name: dict.fromkeys(FORMATS, REFUSED) for name in NO_COLUMN},
    "BIG_DEC": {"JSON in": REFUSED, "Parquet out": REFUSED},
    **{name: {"CSV in": REFUSED} for name in ("CHAR", "ROW", "MAP")},
}
#: of text files
MADE_BY_VALUE = ("BIG_DEC", "ROW", "ARRAY", "MAP")


@pytest.mark.parametrize("name", DECLARED)
def test_what_formats_refuse_is_known(name):
    found = {}
    for what, made in FORMATS.items():
        try:
            made(DECLARED[name])
        except EngineError:
            found[what] = REFUSED
    assert found == NOT_READ.get(name, {})


@pytest.mark.parametrize("name", TYPES)
def test_which_texts_are_made_value_by_value_is_known(name, monkeypatch):
    made = []
    own = column_texts._by_value
    monkeypatch.setattr(column_texts, "_by_value", lambda column, of: made.append(column.type) or own(column, of))
    _, kind, values = TYPES[name]
    texts = column_texts.texts_of(pa.array([*values, None], kind), column_lines._TYPED)
    assert texts.null_count == 0
    assert (bool(made), len(texts)) == (name in MADE_BY_VALUE, 4)
