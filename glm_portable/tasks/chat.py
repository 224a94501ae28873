"""A chat as training and evaluation see it, in the form of OpenAI's chat completions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]
Turns = list[Message]


@dataclass(frozen=True)
class Chat:
    """One synthetic chat: every assistant message in it is a right answer.

    skill: what the last question asks for. family: which generator made it. thinking: whether the
    assistant thinks; its thoughts are then in `reasoning_content`.
    """

    skill: str
    family: str
    thinking: bool
    tools: list[Tool] | None
    messages: Turns


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, thoughts: str = "") -> Message:
    return {"role": "assistant", "content": text, "reasoning_content": thoughts}


def calling(calls: Sequence[tuple[str, Mapping[str, Any]]], thoughts: str = "") -> Message:
    """An assistant message that calls tools, each given as (name, arguments)."""
    return {
        "role": "assistant",
        "content": "",
        "reasoning_content": thoughts,
        "tool_calls": [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(args, ensure_ascii=False)},
            }
            for i, (name, args) in enumerate(calls)
        ],
    }


def tool_result(result: Mapping[str, Any], call: int = 0) -> Message:
    """What the tool of the message's call number `call` returned."""
    return {
        "role": "tool",
        "tool_call_id": f"call_{call}",
        "content": json.dumps(result, ensure_ascii=False),
    }


def spoken(items: Sequence[object]) -> str:
    """A list as the chats write it."""
    return ", ".join(str(item) for item in items)
