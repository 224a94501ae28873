"""The input items of the Responses API brought into the one shape of a chat.

One turn of the assistant is several items here: thinking, text and calls, which are put together.
"""

from collections.abc import Mapping
from typing import Any

from glm_portable.errors import UsageError
from glm_portable.serve.messages import TEXT_PARTS, text_of

_ROLES = ("user", "assistant", "system", "developer")
_THOUGHTS = TEXT_PARTS | {"reasoning_text": "text", "summary_text": "text"}


def chat_messages(instructions: str | None, items: str | list[Any]) -> list[dict[str, Any]]:
    """The conversation as chat messages. Raises UsageError naming what cannot be used."""
    history = _History()
    if instructions:
        history.messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        history.messages.append({"role": "user", "content": items})
    else:
        for number, item in enumerate(items):
            history.take(item, f"input[{number}]")
    return history.messages


class _History:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None  # the assistant's, while it goes on

    def take(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise UsageError(f"{where} must be an object.")
        match item.get("type", "message"):
            case "message":
                self._message(item, where)
            case "reasoning":
                self._reasoning(item, where)
            case "function_call":
                self._assistant().setdefault("tool_calls", []).append(_call(item, where))
            case "function_call_output":
                output = _text(item, "output", where)
                self._add({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
            case other:
                raise UsageError(f"{where} is of type {other!r}, which this server does not know.")

    def _message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise UsageError(f"{where}.role is {role!r}; use one of {', '.join(_ROLES)}.")
        content = _text(item, "content", where)
        if role != "assistant":
            return self._add({"role": role, "content": content})
        if self._turn is not None and self._turn["content"] and "tool_calls" not in self._turn:
            self._turn = None  # two texts without a call between them are two messages
        self._assistant()["content"] += content

    def _reasoning(self, item: Mapping[str, Any], where: str) -> None:
        """The thinking itself, or a summary where a client kept only that, or neither."""
        turn = self._assistant()
        content, summary = (
            text_of(item.get(name), f"{where}.{name}", _THOUGHTS) for name in ("content", "summary")
        )
        text = turn.get("reasoning_content", "") + (content or summary)
        if text:
            turn["reasoning_content"] = text

    def _assistant(self) -> dict[str, Any]:
        if self._turn is None:
            turn: dict[str, Any] = {"role": "assistant", "content": ""}
            self._add(turn)
            self._turn = turn
        return self._turn

    def _add(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._turn = None


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    """Of a field that an item must have, unlike one of a chat."""
    if item.get(name) is None:
        raise UsageError(f"{where}.{name} must be a string or a list of text parts.")
    return text_of(item[name], f"{where}.{name}")


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, arguments = item.get("name"), item.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise UsageError(f"{where} must have a name and arguments, both strings.")
    function = {"name": name, "arguments": arguments}
    return {"id": item.get("call_id"), "type": "function", "function": function}
