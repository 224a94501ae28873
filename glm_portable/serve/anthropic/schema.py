"""JSON Schemas of what the Messages API takes, for /openapi.json."""

from typing import Any


def _block(kind: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", *required],
        "properties": {"type": {"const": kind}, **properties},
    }


_STRING = {"type": "string"}
_TEXT = _block("text", ("text",), text=_STRING)
_TEXTS = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TEXT}]}
_RESULT = _block("tool_result", ("tool_use_id",), tool_use_id=_STRING, content=_TEXTS)
_THINKING = _block("thinking", ("thinking",), thinking=_STRING, signature=_STRING)
_CALL = _block(
    "tool_use", ("id", "name", "input"), id=_STRING, name=_STRING, input={"type": "object"}
)


def _message(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    content = {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": list(blocks)}}]}
    return {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"const": role}, "content": content},
    }


MESSAGE = {
    "anyOf": [
        _message("user", _TEXT, _RESULT),
        _message("assistant", _TEXT, _THINKING, _CALL),
        _message("system", _TEXT),
    ]
}
SYSTEM = _TEXTS
TOOL = {
    "type": "object",
    "required": ["name", "input_schema"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": r"^[^\s<>]+$"},
        "description": {"type": ["string", "null"]},
        "input_schema": {"type": "object"},
        "type": {"enum": ["custom", None]},
    },
}
CHOICE = {
    "anyOf": [
        {"type": "null"},
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["auto", "none", "any"]},
                "disable_parallel_tool_use": {"type": ["boolean", "null"]},
            },
        },
        {
            "type": "object",
            "required": ["type", "name"],
            "properties": {"type": {"const": "tool"}, "name": {"type": "string"}},
        },
    ]
}
ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _STRING, "message": _STRING},
        },
        "request_id": {"type": ["string", "null"]},
    },
}
