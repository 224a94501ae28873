"""JSON Schemas of what the Responses API takes, for /openapi.json."""

from typing import Any

from glm_portable.serve.fields import MAX_MESSAGES


def _object(kind: str, required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", *required],
        "properties": {"type": {"const": kind}, **properties},
    }


_STRING = {"type": "string"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": r"^[^\s<>]+$"}


def _texts(*kinds: str) -> dict[str, Any]:
    parts = [_object(kind, ("text",), text=_STRING) for kind in kinds]
    return {"type": "array", "items": {"anyOf": parts}}


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": {"anyOf": [_STRING, _texts("input_text", "output_text")]},
    },
}
_OUTPUT = {"anyOf": [_STRING, _texts("input_text")]}
_ITEM = {
    "anyOf": [
        _MESSAGE,
        _object("reasoning", (), content=_texts("reasoning_text"), summary=_texts("summary_text")),
        _object(
            "function_call",
            ("call_id", "name", "arguments"),
            call_id=_STRING,
            name=_STRING,
            arguments={"const": "{}"},  # any object as JSON text, which a schema cannot say
        ),
        _object("function_call_output", ("call_id", "output"), call_id=_STRING, output=_OUTPUT),
    ]
}
INPUT = {
    "anyOf": [_STRING, {"type": "array", "items": _ITEM, "minItems": 1, "maxItems": MAX_MESSAGES}]
}
TOOL = _object(
    "function",
    ("name",),
    name=_NAME,
    description={"type": ["string", "null"]},
    parameters={"type": ["object", "null"]},
    strict={"type": ["boolean", "null"]},
)
CHOICE = {
    "anyOf": [
        {"enum": ["none", "auto", "required", None]},
        _object("function", ("name",), name=_NAME),
    ]
}
