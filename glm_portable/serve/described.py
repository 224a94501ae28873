"""Pieces of JSON Schema that the descriptions of several APIs share."""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any

STRING: dict[str, Any] = {"type": "string"}
STRING_OR_NULL: dict[str, Any] = {"type": ["string", "null"]}
BOOLEAN_OR_NULL: dict[str, Any] = {"type": ["boolean", "null"]}
NULL: dict[str, Any] = {"type": "null"}
UNREAD: dict[str, Any] = {"description": "Not read: the model is told nothing of it."}
JSON_TEXT: dict[str, Any] = {"type": "string", "contentMediaType": "application/json"}
NAME: dict[str, Any] = {
    **{"type": "string", "minLength": 1, "maxLength": 128},
    "pattern": r"^[^\s\x1c-\x1f\x85<>]+$",  # what Python calls whitespace, in any dialect
}

Schema = Mapping[str, Any]


def record(required: Iterable[str] = (), **properties: Any) -> dict[str, Any]:
    """An object; what else it has is ignored."""
    return {"type": "object", "required": list(required), "properties": properties}


def typed(kind: str, *required: str, **properties: Any) -> dict[str, Any]:
    """An object that says in `type` which of several it is."""
    return record(("type", *required), type={"const": kind}, **properties)


def any_of(*schemas: Schema) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


def list_of(*items: Schema, **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": items[0] if len(items) == 1 else any_of(*items), **bounds}


def where(**properties: Any) -> dict[str, Any]:
    """Objects that have all these properties, and have them so."""
    return {"required": list(properties), "properties": properties}


def two_of(given: Mapping[str, Schema]) -> list[dict[str, Any]]:
    """Objects that have two of these properties, with the values that count as given."""
    return [where(**{a: given[a], b: given[b]}) for a, b in combinations(given, 2)]


FORCED_CHOICE: dict[str, Any] = where(tool_choice={"not": {"enum": ["none", "auto", None]}})
SOME_TOOLS: dict[str, Any] = where(tools={"type": "array", "minItems": 1})


def rules(
    *refused: Schema, unsupported: Iterable[str] = (), empty: Iterable[Any] = (None,)
) -> Callable[[dict[str, Any]], None]:
    """For `json_schema_extra`: what is refused although each field by itself is right.

    unsupported: fields that have no meaning here, and may only be one of the `empty` values.
    """
    fields = {name: {"enum": list(empty)} for name in unsupported}

    def add(schema: dict[str, Any]) -> None:
        schema["properties"] |= fields
        if refused:
            schema["not"] = any_of(*refused)

    return add
