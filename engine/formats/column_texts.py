"""A column → the text of each value, equal byte for byte to what a row formatter makes of the Python object.

Numbers, truth values, texts, dates and times are made by Arrow, and put right where it writes otherwise than Python
does; what is left (nested values, decimals, bytes, floats with an exponent) is made value by value. What a style cannot
write raises; the caller then goes by rows, where the record is named. Pure. Not here: how texts become lines
(``column_lines``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.records import ColumnBatch

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "TextStyle",
    "bytes_of_texts",
    "joined",
    "plain_texts",
    "texts_in_json",
    "texts_in_quotes",
    "texts_in_repr",
    "texts_of",
    "texts_or_nulls",
]

#: Arrow writes 1e+10 where Python writes 10000000000.0, and 0.00001 where Python writes 1e-05.
_PYTHON_FLOATS: Final = (1e-4, 1e10)
_SECOND_US: Final = 1_000_000
_FIRST_DAY: Final = -719_162  #: 0001-01-01, in days of 1970-01-01
_LAST_DAY: Final = 2_932_896  #: 9999-12-31
_DAY_US: Final = 86_400 * _SECOND_US
_JSON_ESCAPES: Final = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
#: The others, of which there are few in the world.
_CONTROLS: Final = bytes(set(range(0x20)) - set(b"\n\r\t"))


@final
@dataclass(frozen=True)
class TextStyle:
    """How values look. ``of_value``: of any value that is not null; the other fields say the same of usual ones."""

    null: str
    true: str
    false: str
    of_value: Callable[[Any], str]
    #: texts of a column of texts; nulls stay nulls
    of_texts: Callable[[pa.Array], pa.Array]
    #: floats from … to below … have no exponent, as Arrow writes them; all others go through ``of_value``
    plain_floats: tuple[float, float] = _PYTHON_FLOATS
    #: between date and time; None = dates and times go through ``of_value``
    time_separator: str | None = " "
    #: around dates and times
    time_quote: str = ""


def texts_of(column: pa.Array, style: TextStyle) -> pa.Array:
    """Return the texts (``string``) of a column, without nulls. Raises whatever a value raises on rows."""
    import pyarrow.compute as pc

    return pc.fill_null(texts_or_nulls(column, style), style.null)


def texts_or_nulls(column: pa.Array, style: TextStyle) -> pa.Array:
    """As ``texts_of``, but a null stays one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_string(kind):
        return style.of_texts(column)
    if pa.types.is_large_string(kind):
        return style.of_texts(column.cast(pa.string()))
    if pa.types.is_integer(kind):
        return column.cast(pa.string())
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return _texts_of_floats(column.cast(pa.float64()), style)
    if pa.types.is_boolean(kind):
        return pc.if_else(column, style.true, style.false)
    if pa.types.is_dictionary(kind):
        return texts_or_nulls(column.dictionary, style).take(column.indices)
    if style.time_separator is not None:
        texts = _texts_of_times(column, style.time_separator)
        if texts is not None:
            return joined([style.time_quote, texts, style.time_quote]) if style.time_quote else texts
    return _by_value(column, style.of_value)


def _by_value(column: pa.Array, of_value: Callable[[Any], str]) -> pa.Array:
    import pyarrow as pa

    values = ColumnBatch(pa.record_batch([column], names=["v"]), scalar=True).to_rows().rows
    return pa.array([None if value is None else of_value(value) for value in values], pa.string())


def _texts_of_floats(column: pa.Array, style: TextStyle) -> pa.Array:
    """70 to 90 ns a value; those that have an exponent, or are no numbers, 300."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = column.cast(pa.string())
    values = column.fill_null(0.0).to_numpy(zero_copy_only=False)
    sizes = np.abs(values)
    low, high = style.plain_floats
    is_plain = ((sizes >= low) & (sizes < high)) | (sizes == 0)
    is_whole = is_plain & (np.trunc(values) == values)
    if is_whole.any():
        texts = pc.if_else(pa.array(is_whole), joined([texts, ".0"]), texts)
    if not is_plain.all():
        odd = [style.of_value(value) for value in values[~is_plain].tolist()]
        texts = pc.replace_with_mask(texts, pa.array(~is_plain), pa.array(odd, pa.string()))
    return texts


def _texts_of_times(column: pa.Array, separator: str) -> pa.Array | None:
    """Return dates and times in ISO form, None for another type. Python leaves out a fraction of zero."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_date32(kind):
        return column.cast(pa.string()) if _is_between(column.cast(pa.int32()), _FIRST_DAY, _LAST_DAY) else None
    if pa.types.is_timestamp(kind) and kind.tz is None and kind.unit != "ns":
        column, width = column.cast(pa.timestamp("us")), 19
        ends = _FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1
    elif pa.types.is_time32(kind) or (pa.types.is_time64(kind) and kind.unit == "us"):
        column, width = column.cast(pa.time64("us")), 8
        ends = 0, _DAY_US - 1
    else:
        return None
    ticks = column.cast(pa.int64())
    if not _is_between(ticks, *ends):
        return None
    texts = column.cast(pa.string())
    if separator != " ":
        texts = pc.replace_substring(texts, " ", separator)
    is_short = ticks.fill_null(0).to_numpy() % _SECOND_US == 0
    if is_short.any():
        texts = pc.if_else(pa.array(is_short), pc.utf8_slice_codeunits(texts, 0, width), texts)
    return texts


def _is_between(column: pa.Array, low: int, high: int) -> bool:
    import pyarrow.compute as pc

    ends = pc.min_max(column).as_py()
    return ends["min"] is None or (ends["min"] >= low and ends["max"] <= high)


# --- texts ------------------------------------------------------------------------------------------------------------


def joined(parts: list[pa.Array | str]) -> pa.Array:
    """Return the texts of the columns side by side, with constants between them; null where one of them is null."""
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*parts, "")


def bytes_of_texts(texts: pa.Array) -> bytes:
    """Return all texts of a column, one after the other: what lies below nulls may be among it."""
    import numpy as np

    _, ends, held = texts.buffers()
    if held is None or not len(texts):
        return b""
    end_of_row = np.frombuffer(ends, np.int32)
    first, last = int(end_of_row[texts.offset]), int(end_of_row[texts.offset + len(texts)])
    found: bytes = held.slice(first, last - first).to_pybytes()
    return found


def plain_texts(texts: pa.Array) -> pa.Array:
    return texts


def texts_in_repr(texts: pa.Array) -> pa.Array:
    """Return each text as ``repr`` writes it."""
    found = bytes_of_texts(texts)
    if not found.isascii() or b"'" in found or b"\\" in found or b"\x7f" in found or _has_controls(found):
        return _by_value(texts, repr)
    return joined(["'", texts, "'"])


def texts_in_quotes(texts: pa.Array) -> pa.Array:
    """Return each text between double quotes, those within doubled."""
    import pyarrow.compute as pc

    if b'"' in bytes_of_texts(texts):
        texts = pc.replace_substring(texts, '"', '""')
    return joined(['"', texts, '"'])


def texts_in_json(texts: pa.Array) -> pa.Array:
    """Return each text as ``json`` writes it when all of Unicode may be in it."""
    import pyarrow.compute as pc

    found = bytes_of_texts(texts)
    if _has_controls(found) and len(found.translate(None, _CONTROLS)) < len(found):
        return _by_value(texts, encode_basestring)
    for character, escaped in _JSON_ESCAPES:  # the backslash first
        if character.encode() in found:
            texts = pc.replace_substring(texts, character, escaped)
    return joined(['"', texts, '"'])


def _has_controls(data: bytes) -> bool:
    import numpy as np

    return bool((np.frombuffer(data, np.uint8) < 0x20).any())
