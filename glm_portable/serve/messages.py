"""OpenAI chat messages brought into the one shape that chat templates expect.

Clients send messages in many shapes: content as parts or null, arguments as JSON text, whole
answer objects with fields of their own, reasoning under two names. Templates know only one.
"""

import json
from collections.abc import Mapping
from typing import Any

from glm_portable.errors import UsageError

ROLES = ("system", "user", "assistant", "tool")

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of content parts that hold text, and their field that holds it."""


def normalize_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages with string content, arguments as objects and no unknown fields.

    Raises UsageError naming the message and the value that cannot be used.
    """
    if not isinstance(messages, list) or not messages:
        raise UsageError("messages must be a list of at least one message.")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def normalize_tools(tools: Any) -> list[dict[str, Any]]:
    """The list of tool objects, empty for None. Raises UsageError if it is no such list."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise UsageError("tools must be a list of tool objects.")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(f"tools[{i}] must be an object with function.name, a string.")
    return tools


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise UsageError(f"{where} must be an object with role and content.")
    role = message.get("role")
    if role == "developer":  # OpenAI's newer name for the system role
        role = "system"
    if role not in ROLES:
        raise UsageError(f"{where}.role is {role!r}; use one of {', '.join(ROLES)}, developer.")
    content = message.get("content")
    if role == "tool" and isinstance(content, list) and _are_outputs(content):
        return {"role": role, "content": [_output(item) for item in content]}
    result: dict[str, Any] = {"role": role, "content": _content(content, f"{where}.content")}
    fields = _assistant_fields(message, where)  # checked in every message, used in the assistant's
    return result | fields if role == "assistant" else result


def _content(content: Any, where: str) -> str:
    """In a chat, a part may also be a bare string."""
    if isinstance(content, list):
        content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
    return text_of(content, where)


def text_of(content: Any, where: str, parts: Mapping[str, str] = TEXT_PARTS) -> str:
    """The text of a string, of a list of parts of these types, or of null."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageError(f"{where} must be a string or a list of text parts, or null.")
    return "".join(_part(part, f"{where}[{i}]", parts) for i, part in enumerate(content))


def _are_outputs(content: list[Any]) -> bool:
    """GLM's own form of several results in one message: `[{"output": ...}, ...]`."""
    return content != [] and all(isinstance(item, dict) and "output" in item for item in content)


def _output(item: Mapping[str, Any]) -> dict[str, str]:
    output = item["output"]
    return {"output": output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)}


def _part(part: Any, where: str, parts: Mapping[str, str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise UsageError(f"{where} must be an object with a type, such as {next(iter(parts))!r}.")
    if kind not in parts:
        raise UsageError(f"{where} is of type {kind!r}, but this model reads text only.")
    text = part.get(parts[kind])
    if not isinstance(text, str):
        raise UsageError(f"{where}.{parts[kind]} must be a string.")
    return text


def _assistant_fields(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in ("reasoning_content", "reasoning"):  # vLLM and its router use the second
        if isinstance(message.get(name), str):
            fields.setdefault("reasoning_content", message[name])
    if not isinstance(message.get("reasoning_content"), str | None):
        raise UsageError(f"{where}.reasoning_content must be a string or null.")
    calls = message.get("tool_calls")
    if not isinstance(calls, list | None):
        raise UsageError(f"{where}.tool_calls must be a list.")
    if calls:
        fields["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    return fields


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f"{where} must be an object with function.name, a string.")
    arguments = _arguments(function.get("arguments"), f"{where} ({function['name']})")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else None
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, json.JSONDecodeError) else "too large"
            raise UsageError(f"{where}: arguments are not valid JSON: {reason}.") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise UsageError(f"{where}: arguments must be a JSON object.")
    return arguments
