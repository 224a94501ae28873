"""The types of request fields: JSON's own types, strictly, and a bound on every number."""

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

MAX_CHOICES = 16
MAX_PROMPTS = 256
MAX_MESSAGES = 10_000
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_BIASES = 1024
MAX_TOKENS = 2**31 - 1
MAX_SALT_LENGTH = 1024


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 1.0 is the integer 1. (true is not.)"""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Goes last: bounds after it would not reach the schema of /openapi.json."""

Integer = Annotated[int, WHOLE]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE]
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS), WHOLE]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE]
LogprobCount = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS), WHOLE]
Priority = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), WHOLE]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE]
CacheSalt = Annotated[str, Field(min_length=1, max_length=MAX_SALT_LENGTH)]


def _described(check: Callable[[Any], Any], *alternatives: dict[str, Any]) -> tuple[Any, Any]:
    """A field of several types, checked by hand so that its error is one sentence."""
    return PlainValidator(check), WithJsonSchema({"anyOf": list(alternatives)})


def _stops(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("should be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"has {len(stops)} strings; at most {MAX_STOPS} are allowed")
    if not all(1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise ValueError(f"holds a string that does not have 1 to {MAX_STOP_LENGTH} characters")
    return tuple(stops)


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
Stops = Annotated[
    tuple[str, ...] | None,
    *_described(
        _stops, _STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}, {"type": "null"}
    ),
]


def _biases(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(f"should be an object of at most {MAX_BIASES} token ids and biases")
    if not all(key.isascii() and key.isdecimal() and len(key) <= 10 for key in value):
        raise ValueError("should have token ids as its keys")
    if not all(_is_number(bias) and -100 <= bias <= 100 for bias in value.values()):
        raise ValueError("should have numbers from -100 to 100 as its values")
    return {int(key): float(bias) for key, bias in value.items()}


_BIAS = {"type": "number", "minimum": -100, "maximum": 100}
Biases = Annotated[
    dict[int, float] | None,
    *_described(
        _biases,
        {
            "type": "object",
            "additionalProperties": _BIAS,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "maxProperties": MAX_BIASES,
        },
        {"type": "null"},
    ),
]


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_TEXT = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _PART}]}
_CALL = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
        },
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": _TEXT,
        "reasoning_content": {"type": ["string", "null"]},
        "tool_calls": {"type": ["array", "null"], "items": _CALL},
        "tool_call_id": {},
    },
}
# The template's normaliser checks the messages themselves; this is their description.
Messages = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_MESSAGES),
    WithJsonSchema({"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": MAX_MESSAGES}),
]


def _prompts(value: Any) -> tuple[str | list[int], ...]:
    """One prompt or a list of them, each a text or its token ids."""
    prompts = value if isinstance(value, list) and not _is_ids(value) else [value]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(f"has {len(prompts)} prompts; 1 to {MAX_PROMPTS} are allowed")
    if not (all(isinstance(p, str) for p in prompts) or all(_is_ids(p) for p in prompts)):
        raise ValueError("should be a string, token ids, or a list of only one of the two")
    if not all(prompts):
        raise ValueError("holds an empty prompt; give at least one token")
    return tuple(p if isinstance(p, str) else [int(i) for i in p] for p in prompts)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def _is_id(value: Any) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return whole and 0 <= value <= MAX_TOKENS


_ID = {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS}
_IDS = {"type": "array", "items": _ID, "minItems": 1}
_PROMPT = {"type": "string", "minLength": 1}
_SEVERAL = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS}
Prompts = Annotated[
    tuple[str | list[int], ...],
    *_described(_prompts, _PROMPT, _IDS, _SEVERAL | {"items": _PROMPT}, _SEVERAL | {"items": _IDS}),
]

# What a format is, `serve.structured` checks; these are descriptions.
_STRING_OR_NULL = {"type": ["string", "null"]}
_CHOICES = {"type": ["array", "null"], "items": {"type": "string", "minLength": 1}}
SchemaValue = Annotated[Any, WithJsonSchema({"type": ["object", "string", "null"]})]
TextValue = Annotated[Any, WithJsonSchema(_STRING_OR_NULL)]
ChoiceValue = Annotated[Any, WithJsonSchema(_CHOICES)]
StructuredOutputs = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "properties": {
                "json": {"type": ["object", "string", "null"]},
                "regex": _STRING_OR_NULL,
                "choice": _CHOICES,
                "grammar": _STRING_OR_NULL,
                "json_object": {"type": ["boolean", "null"]},
            },
        }
    ),
]
_TYPES = ["text", "json_object", "json_schema"]
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "schema": {"type": "object"}},
}
ResponseFormat = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "required": ["type"],
            "properties": {"type": {"enum": _TYPES}, "json_schema": _SCHEMA},
        }
    ),
]
