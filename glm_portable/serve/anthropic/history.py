"""Messages of content blocks brought into the one shape of a chat.

A user's message holds results of tools beside text; each result becomes a message of its own.
Whatever is not text is refused with its place: images, documents, blocks of Anthropic's own tools.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from glm_portable.errors import UsageError

_READ = {
    "user": frozenset({"text", "tool_result"}),
    "assistant": frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    "system": frozenset({"text"}),
}

_BILLING = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
"""Claude Code begins the system prompt with this line, whose hash differs in every request."""

Placed = tuple[Mapping[str, Any], str]
"""A block, and where it stands in the request."""


def chat_messages(system: Any, messages: list[Any]) -> list[dict[str, Any]]:
    """The conversation as chat messages. Raises UsageError naming what cannot be used."""
    found = []
    instructions = _system(system)
    if instructions:
        found.append({"role": "system", "content": instructions})
    for number, message in enumerate(messages):
        found += _message(message, f"messages[{number}]")
    return found


def _system(system: Any) -> str:
    """Blocks are paragraphs. What is for Anthropic's billing would only defeat the prefix cache."""
    texts = [_text(*placed) for placed in _blocks(system, "system", _READ["system"])]
    kept = [_BILLING.sub("", text) for text in texts]
    return "\n".join(text for text in kept if text)


def _message(message: Any, where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(message, dict):
        raise UsageError(f"{where} must be an object with role and content.")
    role = message.get("role")
    if not isinstance(role, str) or role not in _READ:
        raise UsageError(f"{where}.role is {role!r}; use one of user, assistant, system.")
    if message.get("content") is None:
        raise UsageError(f"{where}.content must be a string or a list of blocks.")
    blocks = list(_blocks(message["content"], f"{where}.content", _READ[role]))
    if role == "assistant":
        yield _assistant(blocks)
    elif role == "system":
        yield {"role": "system", "content": "".join(_text(*placed) for placed in blocks)}
    else:
        yield from _user(blocks)


def _user(blocks: list[Placed]) -> Iterator[dict[str, Any]]:
    text: list[str] = []
    for block, where in blocks:
        if block["type"] == "text":
            text.append(_text(block, where))
            continue
        if text:
            yield {"role": "user", "content": "".join(text)}
            text = []
        parts = _blocks(block.get("content"), f"{where}.content", _READ["system"])
        content = "".join(_text(*placed) for placed in parts)
        yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
    if text or all(block["type"] == "text" for block, _ in blocks):
        yield {"role": "user", "content": "".join(text)}


def _assistant(blocks: list[Placed]) -> dict[str, Any]:
    thinking = [_text(*placed, "thinking") for placed in blocks if placed[0]["type"] == "thinking"]
    text = [_text(*placed) for placed in blocks if placed[0]["type"] == "text"]
    calls = [_call(*placed) for placed in blocks if placed[0]["type"] == "tool_use"]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text)}
    if thinking:
        message["reasoning_content"] = "".join(thinking)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, arguments = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise UsageError(f"{where} must have a name, a string, and an input, an object.")
    function = {"name": name, "arguments": arguments or {}}
    return {"id": block.get("id"), "type": "function", "function": function}


def _blocks(content: Any, where: str, read: frozenset[str]) -> Iterator[Placed]:
    if content is None:
        return
    if isinstance(content, str):
        yield {"type": "text", "text": content}, where
        return
    if not isinstance(content, list):
        raise UsageError(f"{where} must be a string or a list of blocks.")
    for number, block in enumerate(content):
        at = f"{where}[{number}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise UsageError(f"{at} must be an object with a type, such as 'text'.")
        if kind not in read:
            raise UsageError(f"{at} is of type {kind!r}, but this model reads text only.")
        yield block, at


def _text(block: Mapping[str, Any], where: str, name: str = "text") -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise UsageError(f"{where}.{name} must be a string.")
    return text
