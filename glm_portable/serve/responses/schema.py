"""JSON Schemas of what the Responses API takes, for /openapi.json.

Ids are not read: calls and their outputs belong together by their order.
"""

from typing import Any

from glm_portable.serve.described import (
    BOOLEAN_OR_NULL,
    JSON_TEXT,
    NAME,
    STRING,
    STRING_OR_NULL,
    UNREAD,
    any_of,
    list_of,
    record,
    typed,
)
from glm_portable.serve.fields import MAX_MESSAGES, TEXT_PARTS

_TEXTS = any_of(STRING, list_of(*TEXT_PARTS))
_THOUGHTS: dict[str, Any] = any_of(
    STRING_OR_NULL,
    list_of(
        *TEXT_PARTS,
        record(["type", "text"], type={"enum": ["reasoning_text", "summary_text"]}, text=STRING),
    ),
)
_MESSAGE = record(
    ["role", "content"],
    type={"const": "message"},
    role={"enum": ["user", "assistant", "system", "developer"]},
    content=_TEXTS,
)
_REASONING = typed("reasoning", content=_THOUGHTS, summary=_THOUGHTS)
_CALL = typed(
    *("function_call", "name", "arguments"), call_id=UNREAD, name=STRING, arguments=JSON_TEXT
)
_OUTPUT = typed("function_call_output", "output", call_id=UNREAD, output=_TEXTS)
INPUT = any_of(
    STRING,
    list_of(_MESSAGE, _REASONING, _CALL, _OUTPUT, minItems=1, maxItems=MAX_MESSAGES),
)
TOOL = typed(
    *("function", "name"),
    name=NAME,
    description=STRING_OR_NULL,
    parameters={"type": ["object", "null"]},
    strict=BOOLEAN_OR_NULL,
)
CHOICE = any_of({"enum": ["none", "auto", "required", None]}, typed("function", "name", name=NAME))
