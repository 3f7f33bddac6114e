"""Configuration: typed options over plain ``key: value`` text, with Flink's value syntax ("10 s", "1024m").

Options are declared in ``core/options``. Reading files: ``load_config_dir``. A bad value is an error that names key,
value and expectation; an unknown key is a warning with the nearest known one (``option_warnings``).
"""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from engine.core.errors import ConfigError

__all__ = [
    "ConfigOption",
    "Configuration",
    "duration_ms",
    "find_config_dir",
    "format_memory",
    "load_config_dir",
    "memory_bytes",
    "parse_dynamic_properties",
]

T = TypeVar("T")

_DURATION_UNITS_MS: Final[dict[str, float]] = {
    **dict.fromkeys(("ns", "nano", "nanos", "nanosecond", "nanoseconds"), 1e-6),
    **dict.fromkeys(("µs", "us", "micro", "micros", "microsecond", "microseconds"), 1e-3),
    **dict.fromkeys(("", "ms", "milli", "millis", "millisecond", "milliseconds"), 1.0),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1e3),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60e3),
    **dict.fromkeys(("h", "hour", "hours"), 3600e3),
    **dict.fromkeys(("d", "day", "days"), 86400e3),
}
_MEMORY_UNITS: Final[dict[str, int]] = {
    **dict.fromkeys(("b", "bytes"), 1),
    **dict.fromkeys(("k", "kb", "kibibytes"), 1 << 10),
    **dict.fromkeys(("m", "mb", "mebibytes"), 1 << 20),
    **dict.fromkeys(("g", "gb", "gibibytes"), 1 << 30),
    **dict.fromkeys(("t", "tb", "tebibytes"), 1 << 40),
}


def duration_ms(text: str) -> int:
    """Return milliseconds of "10 s", "500ms", "1 min"; a bare number is milliseconds. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Zµ]*)\s*", text)
    if not match or match[2].lower() not in _DURATION_UNITS_MS:
        raise ValueError("a duration such as 500 ms, 10 s, 5 min, 1 h")
    factor = _DURATION_UNITS_MS[match[2].lower()]
    if match[1].isdigit() and factor >= 1:
        return int(match[1]) * int(factor)  # exact, also beyond 2**53
    return round(float(match[1]) * factor)


def memory_bytes(text: str, default_unit: str = "b") -> int:
    """Return bytes of "1024m", "2 gb"; a bare number is in ``default_unit``. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", text)
    unit = (match[2].lower() or default_unit) if match else ""
    if not match or unit not in _MEMORY_UNITS:
        raise ValueError("a memory size such as 512m, 2g, 1024 mb")
    return int(match[1]) * _MEMORY_UNITS[unit]


def format_memory(size_bytes: int) -> str:
    """Return the shortest exact form, e.g. "1024m"."""
    for unit, factor in (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}b"


def boolean(text: str) -> bool:
    match text.strip().lower():
        case "true":
            return True
        case "false":
            return False
    raise ValueError("true or false")


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def string(text: str) -> str:
    return text


@dataclass(frozen=True)
class ConfigOption(Generic[T]):
    """One key: how its text is read, its default, one sentence of documentation, and its older names."""

    key: str
    parse: Callable[[str], T]
    default: T
    doc: str
    older_keys: tuple[str, ...] = ()
    #: further condition on the parsed value: (holds, what is expected)
    check: tuple[Callable[[Any], bool], str] | None = None
    section: str = ""


class Configuration:
    """A set of ``key: value`` texts. Also PyFlink's Configuration (``set_string``, ``get_integer``…)."""

    def __init__(self, other: Configuration | Mapping[str, str] | None = None) -> None:
        self._values: dict[str, str] = {}
        if isinstance(other, Configuration):
            self._values.update(other._values)
        elif other is not None:
            self._values.update({str(key): _as_text(value) for key, value in other.items()})

    @classmethod
    def from_dict(cls, map: Mapping[str, Any]) -> Configuration:
        return cls(map)

    # --- typed -------------------------------------------------------------------------------------------------------

    def get(self, option: ConfigOption[T]) -> T:
        """Return the option's value, from its key, an older name of it, or its default.

        Raises: ConfigError that says key, value and expectation.
        """
        for key in (option.key, *option.older_keys):
            if key in self._values:
                text = self._values[key]
                try:
                    value = option.parse(text)
                except ValueError as error:
                    raise ConfigError(f"{key} is {text!r}; expected {error}.") from None
                if option.check is not None and not option.check[0](value):
                    raise ConfigError(f"{key} is {text!r}; expected {option.check[1]}.")
                return value
        return option.default

    def contains(self, option: ConfigOption[Any]) -> bool:
        return any(key in self._values for key in (option.key, *option.older_keys))

    def set(self, option: ConfigOption[Any] | str, value: Any) -> Configuration:
        self._values[option if isinstance(option, str) else option.key] = _as_text(value)
        return self

    # --- PyFlink's ---------------------------------------------------------------------------------------------------

    def get_string(self, key: str, default_value: str | None = None) -> str | None:
        return self._values.get(key, default_value)

    def set_string(self, key: str, value: str) -> Configuration:
        return self.set(key, value)

    def _parsed(self, key: str, default: Any, parse: Callable[[str], Any]) -> Any:
        if key not in self._values:
            return default
        try:
            return parse(self._values[key])
        except ValueError as error:
            raise ConfigError(f"{key} is {self._values[key]!r}; expected {error}.") from None

    def get_integer(self, key: str, default_value: int) -> int:
        return int(self._parsed(key, default_value, integer))

    def set_integer(self, key: str, value: int) -> Configuration:
        return self.set(key, value)

    def get_boolean(self, key: str, default_value: bool) -> bool:
        return bool(self._parsed(key, default_value, boolean))

    def set_boolean(self, key: str, value: bool) -> Configuration:
        return self.set(key, value)

    def get_float(self, key: str, default_value: float) -> float:
        return float(self._parsed(key, default_value, number))

    def set_float(self, key: str, value: float) -> Configuration:
        return self.set(key, value)

    def get_bytearray(self, key: str, default_value: bytearray) -> bytearray:
        return bytearray(bytes.fromhex(self._values[key])) if key in self._values else default_value

    def set_bytearray(self, key: str, value: bytearray) -> Configuration:
        return self.set(key, bytes(value).hex())

    @staticmethod
    def parse_list_value(value: str) -> list[str]:
        return [part.strip() for part in value.strip("[]").split(";" if ";" in value else ",") if part.strip()]

    def key_set(self) -> builtins.set[str]:
        return set(self._values)

    def contains_key(self, key: str) -> bool:
        return key in self._values

    def remove_config(self, key: str) -> bool:
        return self._values.pop(key, None) is not None

    def add_all(self, other: Configuration | Mapping[str, str], prefix: str | None = None) -> Configuration:
        for key, value in Configuration(other)._values.items():
            self._values[(prefix or "") + key] = value
        return self

    def add_all_to_dict(self, target_dict: dict[str, str]) -> None:
        target_dict.update(self._values)

    def to_dict(self) -> dict[str, str]:
        return dict(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and self._values == other._values

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Configuration({self._values})"


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ";".join(_as_text(item) for item in value)
    return "" if value is None else str(value)


def parse_dynamic_properties(properties: Iterable[str]) -> dict[str, str]:
    """Return {key: value} of ``-D`` texts. A bare ``key`` means true. Raises ConfigError when there is no key."""
    values: dict[str, str] = {}
    for text in properties:
        key, sep, value = text.partition("=")
        if not key.strip():
            raise ConfigError(f"-D{text} has no key; expected -Dkey=value.")
        values[key.strip()] = value.strip() if sep else "true"
    return values


def _flatten(prefix: str, node: Any, into: dict[str, str]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), value, into)
    else:
        into[prefix] = _as_text(node)


def parse_config_text(text: str, name: str) -> dict[str, str]:
    """Return {key: value} of a configuration file: Flink 1.x flat ``key: value`` lines (``flink-conf.yaml``) or real,
    possibly nested YAML (``config.yaml``).

    Raises: ConfigError with file and line for a line that is neither.
    """
    if os.path.basename(name) != "flink-conf.yaml":
        import yaml

        try:
            tree = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{name} is not YAML: {error}") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{name} holds a {type(tree).__name__}; expected key: value lines.")
        nested: dict[str, str] = {}
        _flatten("", tree, nested)
        return nested
    values: dict[str, str] = {}
    for line_number, line in enumerate(text.splitlines(), 1):
        stripped = line.split(" #", 1)[0].strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, sep, value = stripped.partition(":")
        if not sep or not key.strip():
            raise ConfigError(f"{name}, line {line_number}: {line.strip()!r}; expected 'key: value'.")
        values[key.strip()] = value.strip().strip("'\"")
    return values


def find_config_dir(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the configuration folder: ``FLINK_CONF_DIR``, else ``conf`` beside the engine's code, else None.

    Raises: ConfigError when FLINK_CONF_DIR names a folder that does not exist.
    """
    named = (os.environ if environ is None else environ).get("FLINK_CONF_DIR", "")
    if named:
        if not os.path.isdir(named):
            raise ConfigError(f"FLINK_CONF_DIR is {named!r}; expected a folder with config.yaml or flink-conf.yaml.")
        return named
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "conf")
    holds_one = any(os.path.isfile(os.path.join(beside, name)) for name in ("config.yaml", "flink-conf.yaml"))
    return beside if holds_one else None


def load_config_dir(config_dir: str | None) -> Configuration:
    """Return the configuration of a folder: ``config.yaml`` if it is there, else ``flink-conf.yaml``, else nothing.

    Raises: ConfigError when the folder was named but does not exist.
    """
    if config_dir is None:
        return Configuration()
    if not os.path.isdir(config_dir):
        raise ConfigError(
            f"Configuration folder {config_dir} does not exist; set FLINK_CONF_DIR to a folder with config.yaml."
        )
    for name in ("config.yaml", "flink-conf.yaml"):
        path = os.path.join(config_dir, name)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8") as stream:
                    text = stream.read()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"Cannot read configuration file {path}: {error}.") from error
            return Configuration(parse_config_text(text, path))
    return Configuration()
