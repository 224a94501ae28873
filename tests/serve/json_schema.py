"""JSON Schema, as far as /openapi.json uses it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: _TYPES["number"](value) and value == int(value),
}
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda value, bound: value >= bound),
    "maximum": ("number", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("number", lambda value, bound: value > bound),
    "minLength": ("string", lambda value, bound: len(value) >= bound),
    "maxLength": ("string", lambda value, bound: len(value) <= bound),
    "minItems": ("array", lambda value, bound: len(value) >= bound),
    "maxItems": ("array", lambda value, bound: len(value) <= bound),
    "maxProperties": ("object", lambda value, bound: len(value) <= bound),
    "pattern": ("string", lambda value, bound: re.search(bound, value) is not None),
}
_NOTES = {"title", "description", "default", "contentMediaType"}


def allows(schema: Any, value: Any, defs: Mapping[str, Any]) -> bool:
    """Whether `value` satisfies `schema`. defs: what a $ref leads to, by its last step."""
    if isinstance(schema, bool):
        return schema
    return all(
        _keyword(name, schema, value, defs) for name in schema if name not in _NOTES
    ) and _object(schema, value, defs)


def _keyword(name: str, schema: Any, value: Any, defs: Mapping[str, Any]) -> bool:
    told = schema[name]
    match name:
        case "$ref":
            return allows(defs[told.rsplit("/", 1)[1]], value, defs)
        case "type":
            return any(_TYPES[kind](value) for kind in ([told] if isinstance(told, str) else told))
        case "enum" | "const":
            return any(_same(value, known) for known in (told if name == "enum" else [told]))
        case "anyOf":
            return any(allows(item, value, defs) for item in told)
        case "not":
            return not allows(told, value, defs)
        case "items":
            return not isinstance(value, list) or all(allows(told, item, defs) for item in value)
        case "required" | "properties" | "additionalProperties" | "propertyNames":
            return True  # of objects alone
    kind, holds = _BOUNDS[name]
    return not _TYPES[kind](value) or holds(value, told)


def _object(schema: Any, value: Any, defs: Mapping[str, Any]) -> bool:
    if not isinstance(value, dict) or not set(schema.get("required", ())) <= set(value):
        return not isinstance(value, dict)
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(
        allows(known.get(name, rest), item, defs)
        and allows(schema.get("propertyNames", True), name, defs)
        for name, item in value.items()
    )


def _same(value: Any, known: Any) -> bool:
    """JSON's equality: 1 is 1.0, and no boolean."""
    return bool(value == known) and isinstance(value, bool) == isinstance(known, bool)
