"""The types of request fields: JSON's own types, strictly, and a bound on every number."""

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from glm_portable.errors import UsageError
from glm_portable.serve.chat import IGNORED_SWITCHES, SWITCHES, template_variables
from glm_portable.serve.described import (
    BOOLEAN_OR_NULL,
    JSON_TEXT,
    STRING,
    STRING_OR_NULL,
    UNREAD,
    any_of,
    list_of,
    record,
    typed,
    where,
)

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


_TEXT_PART = record(
    ["type", "text"], type={"enum": ["text", "input_text", "output_text"]}, text=STRING
)
TEXT_PARTS = (_TEXT_PART, typed("refusal", "refusal", refusal=STRING))
_CALLED = record(["name"], name=STRING, arguments=any_of({"type": ["object", "null"]}, JSON_TEXT))
_CALL = any_of(
    record(["function"], function=_CALLED, id=UNREAD, type=UNREAD),
    _CALLED | {"not": {"required": ["function"]}},
)
_MESSAGE = record(
    ["role"],
    role={"enum": ["system", "developer", "user", "assistant", "tool"]},
    content=any_of(STRING_OR_NULL, list_of(STRING, *TEXT_PARTS)),
    reasoning_content=STRING_OR_NULL,
    reasoning={"description": "Another name of reasoning_content; read if it is a string."},
    tool_calls={"type": ["array", "null"], "items": _CALL},
    tool_call_id=UNREAD,
)
_OUTPUTS = record(
    ["role", "content"],
    role={"const": "tool"},
    content=list_of(record(["output"]), minItems=1),
)
"""GLM's own form of several results in one message."""
# The template's normaliser checks the messages themselves; this is their description.
Messages = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_MESSAGES),
    WithJsonSchema(list_of(_MESSAGE, _OUTPUTS, minItems=1, maxItems=MAX_MESSAGES)),
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


def _template_options(value: dict[str, Any]) -> dict[str, Any]:
    try:
        template_variables(value)
    except UsageError as error:
        raise ValueError(str(error).removeprefix("chat_template_kwargs: ")) from None
    return value


_CONTRADICTION = [
    where(enable_thinking={"const": on}, thinking={"const": not on}) for on in (True, False)
]
_OPTIONS = dict.fromkeys(SWITCHES, BOOLEAN_OR_NULL) | dict.fromkeys(IGNORED_SWITCHES, UNREAD)
TemplateOptions = Annotated[
    dict[str, Any],
    AfterValidator(_template_options),
    WithJsonSchema(
        record(**_OPTIONS) | {"additionalProperties": False, "not": any_of(*_CONTRADICTION)}
    ),
]
