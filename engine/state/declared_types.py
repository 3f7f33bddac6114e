"""Holds states to the types that their descriptors declare: a value of another type is an error when it is written.

Flink's serializers fail on such a value when it is laid down, far from the line that wrote it; here every write looks.
What a serializer would take is taken: bool and numpy's numbers for integers, integers for floating point numbers, any
sequence for lists. Values are not converted. ``Types.PICKLED_BYTE_ARRAY()``, no type at all and classes of type
information of the user's own take everything.

Looking costs 10 to 40 ns for scalars (see ``docs/PERFORMANCE.md``), as the test for the expected class is compiled into
the method; states without a declared type pay nothing. All fields of tuples and Rows are looked at, and of lists and
maps within a value the first ``ELEMENTS_MAX``: a write should cost no more the more is in the value.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.core.type_info import (
    BasicType,
    BasicTypeInfo,
    ListTypeInfo,
    MapTypeInfo,
    RowTypeInfo,
    SqlTimeTypeInfo,
    TupleTypeInfo,
    TypeInformation,
    _ElementTypeInfo,
)
from engine.state.descriptors import StateDescriptor

__all__ = ["ELEMENTS_MAX", "check_restored", "check_same_type", "hold", "holding_class", "misfit"]

#: Elements of a list or map within a value that are looked at.
ELEMENTS_MAX: Final = 64

_INT_BITS: Final = {BasicType.BYTE: 8, BasicType.SHORT: 16, BasicType.INT: 32, BasicType.LONG: 64}
_EXACT: Final = {
    BasicType.STRING: str,
    BasicType.CHAR: str,
    BasicType.BOOLEAN: bool,
    BasicType.BIG_INT: int,
    BasicType.FLOAT: float,
    BasicType.DOUBLE: float,
}
_SQL_TIMES: Final = {"DATE": datetime.date, "TIME": datetime.time, "TIMESTAMP": datetime.datetime}


# --- does a value fit? ------------------------------------------------------------------------------------------------


def misfit(declared: TypeInformation | None, value: Any) -> str | None:
    """Return what does not fit, e.g. "field 1 is 'x' of type str, expected Integer (32 bits)"; None = it fits."""
    match declared:
        case BasicTypeInfo(basic_type=basic):
            return _misfit_of_basic(basic, value)
        case SqlTimeTypeInfo(kind=kind):
            expected = _SQL_TIMES[kind]
            return None if isinstance(value, expected) else _seen(value, f"datetime.{expected.__name__}")
        case TupleTypeInfo():
            return _misfit_of_fields(declared, value)
        case MapTypeInfo():
            return _misfit_of_map(declared, value)
        case _ElementTypeInfo(element_type=element):
            return _misfit_of_elements(element, value)
    return None


def _seen(value: Any, expected: str) -> str:
    return f"{value!r:.80} of type {type(value).__name__}, expected {expected}"


def _misfit_of_basic(basic: BasicType, value: Any) -> str | None:
    if basic in _INT_BITS:
        return _misfit_of_integer(basic, value)
    name = basic.value
    match basic:
        case BasicType.STRING | BasicType.CHAR:
            return None if isinstance(value, str) else _seen(value, f"{name} (str)")
        case BasicType.BOOLEAN:
            is_bool = isinstance(value, bool) or type(value).__name__ == "bool" or (_is_int(value) and value in (0, 1))
            return None if is_bool else _seen(value, f"{name} (bool)")
        case BasicType.BIG_INT:
            return None if _is_int(value) else _seen(value, f"{name} (int)")
        case BasicType.FLOAT | BasicType.DOUBLE:
            is_number = hasattr(value, "__float__") or _is_int(value)
            return None if is_number else _seen(value, f"{name} (float)")
        case BasicType.BIG_DEC:
            fits = isinstance(value, decimal.Decimal) or _is_int(value)
            return None if fits else _seen(value, f"{name} (decimal.Decimal)")
        case BasicType.INSTANT:
            fits = hasattr(value, "seconds") and hasattr(value, "nanos")
            return None if fits else _seen(value, f"{name} (Instant)")
    return None


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__")


def _misfit_of_integer(basic: BasicType, value: Any) -> str | None:
    bits = _INT_BITS[basic]
    expected = f"{basic.value} (int of {bits} bits)"
    if not _is_int(value):
        return _seen(value, expected)
    bound = 1 << bits - 1
    if -bound <= value < bound:
        return None
    wider = "Types.LONG()" if bits < 64 and -(1 << 63) <= value < 1 << 63 else "Types.BIG_INT()"
    return f"{value!r:.80}, which is out of the range of {expected}; {wider} takes it"


def _misfit_of_fields(declared: TupleTypeInfo, value: Any) -> str | None:
    types = declared.get_field_types()
    takes_none = isinstance(declared, RowTypeInfo)
    what = "Row" if takes_none else "tuple"
    if not isinstance(value, (tuple, list, Row)):
        return _seen(value, f"a {what} of {len(types)} fields")
    if len(value) != len(types):
        return f"{value!r:.80} with {len(value)} fields, expected {len(types)}"
    for index, (field_type, field) in enumerate(zip(types, value, strict=True)):
        if field is None and takes_none:
            continue
        found = misfit(field_type, field)
        if found is not None:
            hint = "; a tuple's fields cannot be None, a Types.ROW's can" if field is None else ""
            return f"a {what} whose field {declared.get_field_names()[index]} is {found}{hint}"
    return None


def _misfit_of_map(declared: MapTypeInfo, value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return _seen(value, "a dict")
    for key, entry in itertools.islice(value.items(), ELEMENTS_MAX):
        found = _misfit_of_entry(declared, key, entry)
        if found is not None:
            return f"a map with {found}"
    return None


def _misfit_of_entry(declared: MapTypeInfo, key: Any, entry: Any) -> str | None:
    """Of one entry; its value may be None, as in Flink's maps."""
    found = misfit(declared.key_type_info, key)
    if found is not None:
        return f"key {found}"
    found = None if entry is None else misfit(declared.value_type_info, entry)
    return None if found is None else f"value {found} (of key {key!r:.80})"


def _misfit_of_elements(element_type: TypeInformation, value: Any) -> str | None:
    if isinstance(value, (bytes, bytearray)):
        is_byte = isinstance(element_type, BasicTypeInfo) and element_type.basic_type is BasicType.BYTE
        return None if is_byte else _seen(value, "a list")
    if isinstance(value, (str, Mapping)) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        return _seen(value, "a list")
    for element in itertools.islice(value, ELEMENTS_MAX):
        found = None if element is None else misfit(element_type, element)
        if found is not None:
            return f"a list whose element is {found}"
    return None


# --- what was restored ------------------------------------------------------------------------------------------------


def check_restored(owner: str, descriptor: StateDescriptor, cells: Iterable[Any]) -> None:
    """Look at restored cells, without times of expiry: the program that wrote them may have declared another type.

    Raises: ProgramError that names the state. ``owner``: whose state it is.
    """
    declared = _written_type(descriptor)
    if declared is None or _takes_everything(declared):
        return
    for cell in cells:
        if descriptor.kind == "map" and isinstance(declared, MapTypeInfo):
            found = _misfit_of_map(declared, cell)
        elif descriptor.kind == "list":
            found = _misfit_of_elements(declared, cell)
        else:
            found = misfit(declared, cell)
        if found is not None:
            raise ProgramError(
                f"{owner}: {descriptor.kind} state {descriptor.name!r} is declared {descriptor.type_info}, and what "
                f"was restored of it holds {found}: another version of the program wrote it. Declare the type that it "
                "was written with, or give the new state another name; Types.PICKLED_BYTE_ARRAY() takes everything."
            )


def check_same_type(former: StateDescriptor | None, descriptor: StateDescriptor) -> None:
    """Raises: ProgramError when one state is declared with two types."""
    known = None if former is None else former.type_info
    if known is None or known is descriptor.type_info or descriptor.type_info is None or known == descriptor.type_info:
        return
    raise ProgramError(
        f"State {descriptor.name!r} is declared {known} and also {descriptor.type_info}: use one descriptor for it, or "
        "give one of them another name."
    )


# --- states that look ------------------------------------------------------------------------------------------------

#: The one class whose values fit without a further look, and of integers between which bounds they must be.
_Quick = tuple[type, Any, Any]
#: How values of a type are told to fit at once: by class, and of tuples and Rows by the fields.
_Test = tuple[_Quick, tuple[_Quick, ...] | None]


class _Nothing:
    """Of no value: each is looked at."""


def holding_class(base: Any, descriptor: StateDescriptor) -> Any:
    """Return the class to make a state object of: ``base``, or one whose writing methods look first and raise
    ProgramError. It has to have the descriptor as ``_descriptor``. A subclass is as quick as a method can be."""
    declared = _written_type(descriptor)
    if declared is None or _takes_everything(declared):
        return base
    if descriptor.kind == "map" and isinstance(declared, MapTypeInfo):
        if _takes_everything(declared.key_type_info) and _takes_everything(declared.value_type_info):
            return base
        return _holding(base, descriptor.kind, (_test(declared.key_type_info), _test(declared.value_type_info)))
    return _holding(base, descriptor.kind, (_test(declared),))


def hold(state: Any, descriptor: StateDescriptor) -> None:
    """The same for an object that is there already: calls get slower by more."""
    state._descriptor = descriptor
    state.__class__ = holding_class(getattr(type(state), "without_look", type(state)), descriptor)


def _written_type(descriptor: StateDescriptor) -> TypeInformation | None:
    declared = descriptor.type_info
    if descriptor.kind == "list" and isinstance(declared, ListTypeInfo):
        return declared.element_type
    return declared


def _takes_everything(declared: TypeInformation) -> bool:
    return not isinstance(declared, (BasicTypeInfo, SqlTimeTypeInfo, TupleTypeInfo, MapTypeInfo, _ElementTypeInfo))


def _quick(declared: TypeInformation) -> _Quick:
    if not isinstance(declared, BasicTypeInfo):
        return (_Nothing, None, 0)
    bits = _INT_BITS.get(declared.basic_type)
    if bits is not None:
        return (int, -(1 << bits - 1), (1 << bits - 1) - 1)
    return (_EXACT.get(declared.basic_type, _Nothing), None, 0)


def _test(declared: TypeInformation) -> _Test:
    if not isinstance(declared, TupleTypeInfo):
        return (_quick(declared), None)
    return (_quick(declared), tuple(_quick(field_type) for field_type in declared.get_field_types()))


def _refuse(state: Any, method: str, found: str) -> None:
    descriptor = state._descriptor
    raise ProgramError(
        f"{descriptor.kind.capitalize()} state {descriptor.name!r} is declared {descriptor.type_info}, and {method} "
        f"{found}. Write values of the declared type, or declare the type that they have; "
        "Types.PICKLED_BYTE_ARRAY() takes everything."
    )


def _look(state: Any, method: str, value: Any, fields: _Fields | None = None, does: str = "was given") -> None:
    if fields is not None and fields.fit(value):
        return
    found = misfit(_written_type(state._descriptor), value)
    if found is not None:
        _refuse(state, method, f"{does} {found}")


@final
class _Fields:
    """Knows most tuples and Rows that fit, in a tenth of the time of ``misfit``."""

    __slots__ = ("_bounds", "_classes")

    def __init__(self, quicks: Iterable[_Quick]) -> None:
        self._classes = [exact for exact, _, _ in quicks]
        self._bounds = [(at, low, high) for at, (_, low, high) in enumerate(quicks) if low is not None]

    def fit(self, value: Any) -> bool:
        fields = value if type(value) is tuple else value._values if type(value) is Row else ()
        if [*map(type, fields)] != self._classes:
            return False
        for at, low, high in self._bounds:  # noqa: SIM110 - a generator costs twice as much
            if not low <= fields[at] <= high:
                return False
        return True


@functools.lru_cache(maxsize=1024)
def _holding(base: type, kind: str, tests: tuple[_Test, ...]) -> type:
    makers: dict[str, Any] = {"value": _value_methods, "list": _list_methods, "map": _map_methods}
    make = makers.get(kind, _folding_methods)
    methods: dict[str, Any] = {"without_look": base, "__module__": base.__module__, "__doc__": base.__doc__}
    methods.update(make(base, *tests))
    return type(base)(base.__name__, (base,), methods)


def _value_methods(base: Any, test: _Test) -> dict[str, Callable[..., None]]:
    (exact, low, high), quicks = test
    if quicks is not None:
        return {"update": _update_of_fields(base, _Fields(quicks))}
    write = base.update

    put = base._put

    def update(self: Any, value: Any) -> None:
        if type(value) is exact and (low is None or low <= value <= high):
            put(self, value)
            return
        if value is not None:
            _look(self, "update()", value)
        write(self, value)

    return {"update": update}


def _update_of_fields(base: Any, fields: _Fields) -> Callable[..., None]:
    write = base.update

    def update(self: Any, value: Any) -> None:
        if not fields.fit(value) and value is not None:
            _look(self, "update()", value)
        write(self, value)

    return update


def _folding_methods(base: Any, test: _Test) -> dict[str, Callable[..., None]]:
    """Of reducing and aggregating state: what the user's function makes of the values is what is kept."""
    (exact, low, high), quicks = test
    fields = None if quicks is None else _Fields(quicks)
    write = base._put

    def _put(self: Any, cell: Any) -> None:
        if type(cell) is not exact or (low is not None and not low <= cell <= high):
            _look(self, "add()", cell, fields, "would keep")
        write(self, cell)

    return {"_put": _put}


def _list_methods(base: Any, test: _Test) -> dict[str, Callable[..., None]]:
    (exact, low, high), quicks = test
    fields = None if quicks is None else _Fields(quicks)
    add_one, add_many, replace = base.add, base.add_all, base.update

    def add(self: Any, value: Any) -> None:
        if type(value) is not exact or (low is not None and not low <= value <= high):
            _look(self, "add()", value, fields)
        add_one(self, value)

    def add_all(self: Any, values: Iterable[Any]) -> None:
        values = list(values)
        for value in values:
            if type(value) is not exact or (low is not None and not low <= value <= high):
                _look(self, "add_all()", value, fields)
        add_many(self, values)

    def update(self: Any, values: Iterable[Any]) -> None:
        values = list(values)
        for value in values:
            if type(value) is not exact or (low is not None and not low <= value <= high):
                _look(self, "update()", value, fields)
        replace(self, values)

    return {"add": add, "add_all": add_all, "update": update}


def _map_methods(base: Any, key_test: _Test, value_test: _Test) -> dict[str, Callable[..., None]]:
    (exact_key, low_key, high_key), _ = key_test
    (exact, low, high), _ = value_test
    write = base.put

    def put(self: Any, key: Any, value: Any) -> None:
        if (
            type(key) is not exact_key
            or type(value) is not exact
            or (low_key is not None and not low_key <= key <= high_key)
            or (low is not None and not low <= value <= high)
        ):
            found = _misfit_of_entry(self._descriptor.type_info, key, value)
            if found is not None:
                _refuse(self, "put()", f"was given {found}")
        write(self, key, value)

    def put_all(self: Any, dict_value: Any) -> None:
        for key, value in dict_value.items() if hasattr(dict_value, "items") else dict_value:
            self.put(key, value)

    return {"put": put, "put_all": put_all}
