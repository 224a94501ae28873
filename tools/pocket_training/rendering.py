"""A whole chat as the text that the model learns to continue."""

import json
from functools import cache
from typing import Any

import jinja2

from glm_portable.serve.template import compile_template
from glm_portable.serve.template import render as render_template
from glm_portable.tasks import Chat, Message


@cache
def _compiled(template: str) -> jinja2.Template:
    return compile_template(template, "chat_template.jinja")


def render(template: str, chat: Chat) -> str:
    """The chat through the chat template, its end marked by the next turn's <|user|>."""
    variables: dict[str, Any] = {
        "messages": [_with_parsed_arguments(message) for message in chat.messages],
        "tools": chat.tools,
        "add_generation_prompt": False,
    }
    if not chat.thinking:
        variables["enable_thinking"] = False
    return render_template(_compiled(template), variables) + "<|user|>"


def _with_parsed_arguments(message: Message) -> Message:
    """Templates take a call's arguments as an object; the API carries them as JSON text."""
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [
        {"function": {"name": f["name"], "arguments": json.loads(f["arguments"])}}
        for f in functions
    ]
    return {**message, "tool_calls": calls}
