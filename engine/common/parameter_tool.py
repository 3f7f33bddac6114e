"""ParameterTool: program arguments, property files and maps as typed parameters. Names as in Flink's Java API."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from engine.core.config import Configuration
from engine.core.errors import ConfigError

__all__ = ["ParameterTool"]

#: The value of an argument that was given without one: ``--verbose``.
NO_VALUE = "__NO_VALUE_KEY"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class ParameterTool:
    """An immutable map of text parameters."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @staticmethod
    def from_args(args: Sequence[str] | None = None) -> ParameterTool:
        """Read ``--key value``, ``-key value``, ``--key=value`` and bare ``--flag``; default: the program's own.

        Raises: ConfigError for an argument that belongs to no key.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        values: dict[str, str] = {}
        position = 0
        while position < len(arguments):
            text = arguments[position]
            key = text.lstrip("-")
            if not text.startswith("-") or not key or _is_number(text):
                raise ConfigError(f"Argument {text!r} belongs to no key; expected --key value pairs.")
            position += 1
            if "=" in key:
                key, _, values_text = key.partition("=")
                values[key] = values_text
            elif position < len(arguments) and (
                not arguments[position].startswith("-") or _is_number(arguments[position])
            ):
                values[key] = arguments[position]
                position += 1
            else:
                values[key] = NO_VALUE
        return ParameterTool(values)

    @staticmethod
    def from_map(values: Mapping[str, Any]) -> ParameterTool:
        return ParameterTool({str(key): str(value) for key, value in values.items()})

    @staticmethod
    def from_properties_file(path: str) -> ParameterTool:
        """Read ``key=value`` or ``key: value`` lines; ``#`` and ``!`` begin comments."""
        try:
            with open(path, encoding="utf-8") as stream:
                lines = stream.read().splitlines()
        except OSError as error:
            raise ConfigError(f"Cannot read properties file {path}: {error.strerror}.") from error
        values: dict[str, str] = {}
        for line in lines:
            text = line.strip()
            if not text or text[0] in "#!":
                continue
            cut = min((at for at in (text.find("="), text.find(":")) if at >= 0), default=-1)
            if cut < 0:
                raise ConfigError(f"{path}: {text!r}; expected key=value.")
            values[text[:cut].strip()] = text[cut + 1 :].strip()
        return ParameterTool(values)

    def merge_with(self, other: ParameterTool) -> ParameterTool:
        """Return both; the other's values win."""
        return ParameterTool({**self._values, **other._values})

    def has(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default_value: str | None = None) -> str | None:
        value = self._values.get(key, default_value)
        return default_value if value == NO_VALUE else value

    def get_required(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            raise ConfigError(f"No data for required key '{key}'; give it as --{key} VALUE.")
        return value

    def _typed(self, key: str, default: Any, parse: Any, expectation: str) -> Any:
        text = self.get(key)
        if text is None:
            if default is None:
                raise ConfigError(f"No data for required key '{key}'; give it as --{key} VALUE.")
            return default
        try:
            return parse(text)
        except ValueError:
            raise ConfigError(f"--{key} is {text!r}; expected {expectation}.") from None

    def get_int(self, key: str, default_value: int | None = None) -> int:
        return int(self._typed(key, default_value, int, "a whole number"))

    def get_long(self, key: str, default_value: int | None = None) -> int:
        return self.get_int(key, default_value)

    def get_float(self, key: str, default_value: float | None = None) -> float:
        return float(self._typed(key, default_value, float, "a number"))

    def get_double(self, key: str, default_value: float | None = None) -> float:
        return self.get_float(key, default_value)

    def get_boolean(self, key: str, default_value: bool | None = None) -> bool:
        if self._values.get(key) == NO_VALUE:
            return True
        return bool(self._typed(key, default_value, lambda text: text.strip().lower() == "true", "true or false"))

    def get_number_of_parameters(self) -> int:
        return len(self._values)

    def to_map(self) -> dict[str, str]:
        return dict(self._values)

    def get_configuration(self) -> Configuration:
        return Configuration(self._values)

    def __repr__(self) -> str:
        return f"ParameterTool({self._values})"
