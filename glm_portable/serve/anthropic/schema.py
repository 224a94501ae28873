"""JSON Schemas of what the Messages API takes, for /openapi.json.

Ids and signatures are not read: calls and their results belong together by their order.
"""

from typing import Any

from glm_portable.serve.described import (
    BOOLEAN_OR_NULL,
    NAME,
    NULL,
    STRING,
    STRING_OR_NULL,
    UNREAD,
    any_of,
    list_of,
    record,
    typed,
    where,
)

_TEXT = typed("text", "text", text=STRING)
_TEXTS = any_of(STRING_OR_NULL, list_of(_TEXT))
_RESULT = typed("tool_result", tool_use_id=UNREAD, content=_TEXTS)
_THINKING = typed("thinking", "thinking", thinking=STRING, signature=UNREAD)
_REDACTED = typed("redacted_thinking", data=UNREAD)
_CALL = typed("tool_use", "name", id=UNREAD, name=STRING, input={"type": ["object", "null"]})


def _message(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    content = any_of(STRING, list_of(*blocks))
    return record(["role", "content"], role={"const": role}, content=content)


MESSAGE = any_of(
    _message("user", _TEXT, _RESULT),
    _message("assistant", _TEXT, _THINKING, _REDACTED, _CALL),
    _message("system", _TEXT),
)
SYSTEM = _TEXTS
TOOL = record(
    ["name", "input_schema"],
    name=NAME,
    description=STRING_OR_NULL,
    input_schema={"type": "object"},
    strict=BOOLEAN_OR_NULL,
    type={"enum": ["custom", None]},
)
_ANY = record(
    ["type"],
    type={"enum": ["auto", "none", "any"]},
    disable_parallel_tool_use=BOOLEAN_OR_NULL,
)
_NAMED = typed("tool", "name", name=NAME, disable_parallel_tool_use=BOOLEAN_OR_NULL)
CHOICE = any_of(NULL, _ANY, _NAMED)
FORCED_CHOICE = where(tool_choice=where(type={"enum": ["any", "tool"]}) | {"type": "object"})
ERROR = record(
    ["type", "error"],
    type={"const": "error"},
    error=record(["type", "message"], type=STRING, message=STRING),
    request_id=STRING_OR_NULL,
)
