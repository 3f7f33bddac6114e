"""What ``group_by(0)``, ``where("name", 2)`` and ``group_by(lambda r: …)`` mean: arguments → key selectors."""

from __future__ import annotations

import inspect
import re
from typing import Any

from engine.core.errors import ProgramError
from engine.dataset.vocabulary import Order
from engine.operators.batch_keys import NamedFieldKey, PositionKey, whole_record
from engine.operators.functions import Function, KeySelector
from engine.operators.keys import ComposedKey, FieldKey

__all__ = ["aggregation_field", "as_selector", "field_selector", "is_ascending"]


def _is_field(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def field_selector(field: Any, what: str) -> Any:
    """Return the selector of one field, by position or name. Raises ProgramError when it is neither."""
    if not _is_field(field):
        raise ProgramError(f"{what}: {field!r} is not a field; expected a position (0, 1, …) or a name.")
    if isinstance(field, int):
        if field < 0:
            raise ProgramError(f"{what}: field {field} is negative; positions count from 0.")
        return FieldKey(field)
    if field in ("*", "_"):
        return whole_record
    match = re.fullmatch(r"f(\d+)", field)
    return NamedFieldKey(field, int(match[1])) if match else FieldKey(field)


def as_selector(keys: tuple[Any, ...], what: str) -> Any:
    """Return the selector for a method's key arguments. Raises ProgramError that names the method ``what``."""
    if len(keys) == 1 and isinstance(keys[0], list | tuple):
        keys = tuple(keys[0])
    if not keys:
        raise ProgramError(
            f"{what} needs a key: field positions (0, 1), names ('word') or a function record → key, e.g. {what}(0)."
        )
    if len(keys) == 1 and not _is_field(keys[0]):
        selector = keys[0]
        if isinstance(selector, KeySelector) or (callable(selector) and not isinstance(selector, Function)):
            return _checked(selector, what)
        raise ProgramError(
            f"{what}: {selector!r} is not a key; expected a position, a name, or a function record → key."
        )
    parts = [field_selector(key, what) for key in keys]
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, FieldKey) for part in parts):
        return ComposedKey(tuple(part.field for part in parts))
    return PositionKey(tuple(parts))


def _checked(selector: Any, what: str) -> Any:
    if inspect.isfunction(selector):
        parameters = inspect.signature(selector).parameters.values()
        required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        if len(required) > 1:
            raise ProgramError(f"{what}: the key function takes {len(required)} arguments; expected one, the record.")
        from engine.datastream.key_selectors import as_key_selector

        return as_key_selector(selector)  # lambda row: row[0] is a field
    return selector


def aggregation_field(field: Any, what: str) -> int | str:
    """Return a field to aggregate. Raises ProgramError when it is no position or name."""
    selector = field_selector(field, what)
    if selector is whole_record:
        raise ProgramError(f"{what}: expected one field, not {field!r}.")
    return selector.position if isinstance(selector, NamedFieldKey) else selector.field  # type: ignore[no-any-return]


def is_ascending(order: Any, what: str) -> bool:
    """Return whether ``Order.ASCENDING`` is meant. Raises ProgramError for anything but the two directions."""
    match order:
        case Order.ASCENDING:
            return True
        case Order.DESCENDING:
            return False
    raise ProgramError(f"{what}: {order!r} is not a direction; expected Order.ASCENDING or Order.DESCENDING.")
