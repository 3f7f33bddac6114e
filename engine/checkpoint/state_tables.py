"""Entries of a keyed state as rows and columns: one row a key and namespace, of lists one an element, of maps one an
entry.

Columns: ``key``; ``window_start`` and ``window_end``, or ``namespace``, where the state has any; ``index`` (lists) or
``map_key`` (maps); ``value``; ``last_touch`` where values expire. Objects become structs of their fields. Where values
of a column are of several types, all are shown as text. Not here: where entries come from (``reader``).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.errors import ConfigError
from engine.core.fs import file_system_of
from engine.core.records import Row
from engine.state.chunks import UnknownValue
from engine.time.windows import TimeWindow

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["StateTable"]

_PLAIN: Final = (str, int, float, bool, bytes, type(None), dt.date, dt.time, dt.timedelta, decimal.Decimal)
_FORMATS: Final = (".parquet", ".csv", ".arrow", ".feather")


@final
class StateTable:
    """``kind``: value, list, map or timers. ``read``: gives (key, namespace, cell) anew at each call; a cell is as in
    ``heap_backend``, of a timer (time, domain)."""

    def __init__(self, name: str, kind: str, has_ttl: bool, read: Callable[[], Iterator[tuple[Any, Any, Any]]]) -> None:
        self.name = name
        self.kind = kind
        self.has_ttl = has_ttl
        self._read = read

    def entries(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (key, namespace, value) as the program had them; expiring values with the time of their last touch."""
        return self._read()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield rows; all have the same columns but those of namespaces."""
        for key, namespace, cell in self._read():
            place = {"key": key}
            if isinstance(namespace, TimeWindow):
                place |= {"window_start": namespace.start, "window_end": namespace.end}
            elif namespace is not None:
                place["namespace"] = namespace
            for columns in self._of_cell(cell):
                yield place | columns

    def _of_cell(self, cell: Any) -> Iterable[dict[str, Any]]:
        match self.kind:
            case "timers":
                return ({"time": cell[0], "domain": cell[1]},)
            case "list":
                return ({"index": index} | self._value(value) for index, value in enumerate(cell))
            case "map":
                return ({"map_key": key} | self._value(value) for key, value in cell.items())
        return (self._value(cell),)

    def _value(self, value: Any) -> dict[str, Any]:
        return {"value": value[0], "last_touch": value[1]} if self.has_ttl else {"value": value}

    def to_arrow(self, limit: int | None = None) -> pyarrow.Table:
        """Return at most ``limit`` rows (default: all; they must fit into memory)."""
        import pyarrow as pa

        columns: dict[str, list[Any]] = {}
        for number, row in enumerate(itertools.islice(self.rows(), limit)):
            for name, value in row.items():
                column = columns.get(name)
                if column is None:
                    column = columns[name] = [None] * number
                column.append(_plain(value))
            for column in columns.values():
                if len(column) == number:
                    column.append(None)
        order = ("key", "window_start", "window_end", "namespace", "index", "map_key", "value", "last_touch")
        names = sorted(columns, key=lambda name: order.index(name) if name in order else len(order))
        return pa.table({name: _array(columns[name]) for name in names})

    def to_pandas(self, limit: int | None = None) -> pandas.DataFrame:
        """Raises: ConfigError when pandas is not there, which the engine does not install by itself."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise ConfigError(
                "to_pandas() needs pandas, which is not installed here. Install it with: pip install '.[pandas]' (or "
                "pip install pandas), or use to_arrow()."
            ) from None
        return self.to_arrow(limit).to_pandas()

    def write(self, path: str, limit: int | None = None) -> int:
        """Write a .parquet, .csv or .arrow file on any file system; return the number of rows.

        Raises: ConfigError for another ending.
        """
        if not path.endswith(_FORMATS):
            raise ConfigError(
                f"{path} should end with {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}: that is its format."
            )
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.feather
        import pyarrow.parquet

        table = self.to_arrow(limit)
        buffer = pa.BufferOutputStream()
        if path.endswith(".parquet"):
            pyarrow.parquet.write_table(table, buffer)
        elif path.endswith(".csv"):
            pyarrow.csv.write_csv(_flat(table), buffer)
        else:
            pyarrow.feather.write_feather(table, buffer)
        with file_system_of(path).open_write(path, overwrite=True) as stream:
            stream.write(buffer.getvalue().to_pybytes())
        return int(table.num_rows)


def _plain(value: Any) -> Any:
    """Return a value as Arrow may take it: objects as dicts of their fields."""
    if isinstance(value, (enum.Enum, uuid.UUID)):
        return str(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Row):
        if value.has_field_names():
            return {name: _plain(field) for name, field in value.as_dict().items()}
        return {f"f{index}": _plain(field) for index, field in enumerate(value)}
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None) or [f"f{index}" for index in range(len(value))]
        return {name: _plain(field) for name, field in zip(names, value, strict=True)} or None
    if isinstance(value, (list, set, frozenset)):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(element) for key, element in value.items()} or None
        return [{"key": _plain(key), "value": _plain(element)} for key, element in value.items()]
    if isinstance(value, UnknownValue):
        fields = {name: field for name, field in vars(value).items() if name != "arguments"}
        return {name: _plain(field) for name, field in fields.items()} or repr(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)} or None
    return repr(value)


def _array(values: list[Any]) -> pyarrow.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])


def _flat(table: pyarrow.Table) -> pyarrow.Table:
    """CSV has no structs and lists: they become columns of their own, or text."""
    import pyarrow as pa

    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            texts = [None if value is None else str(value) for value in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table
