"""Checks an answer against Flink's OpenAPI schemas (``flink_schemas.json``: the parts of Flink 2.3's
``rest_v1_dispatcher.yml`` that we answer): every documented field is there with its type, and no other field is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parent / "flink_schemas.json").read_text(encoding="utf-8"))
#: Fields that the generated schema names but a real Flink 2.3 cluster leaves out or writes in another form.
LEFT_OUT = {"application-id", "stream-graph", "inputs", "caching", "local_strategy"}
OTHER_FORM = {"slotSharingGroupId", "job-accumulators", "mode"}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def problems(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """Return what is wrong, one line per place."""
    if "$ref" in schema:
        return problems(value, SCHEMAS[schema["$ref"].rsplit("/", 1)[1]], where)
    kind = schema.get("type")
    if value is None:
        return []  # Flink writes null for what it does not know
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{where}: {value!r} is not of type {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is not one of {schema['enum']}"]
    if kind == "array":
        return [line for i, item in enumerate(value) for line in problems(item, schema["items"], f"{where}[{i}]")]
    if kind != "object":
        return []
    found = []
    properties = schema.get("properties", {})
    if properties:
        found += [f"{where}: {name} is missing" for name in properties if name not in value and name not in LEFT_OUT]
        found += [f"{where}: {name} is not a field of Flink's" for name in value if name not in properties]
    for name, item in value.items():
        if name in properties and name not in OTHER_FORM:
            found += problems(item, properties[name], f"{where}.{name}")
        elif isinstance(schema.get("additionalProperties"), dict):
            found += problems(item, schema["additionalProperties"], f"{where}.{name}")
    return found


def assert_matches(value: Any, name: str) -> None:
    assert problems(value, SCHEMAS[name]) == []
