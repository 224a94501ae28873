"""A conversation that many tests hold, and what a client makes of a stream."""

from typing import Any

import openai

HI: list[Any] = [{"role": "user", "content": "Hi."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
CALL = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
THOUGHT = "\n<think>A greeting.</think>\nHello!"


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="pocket", messages=HI, **options)


def folded(chunks: list[Any], index: int = 0) -> dict[str, Any]:
    """What a client makes of the chunks of one choice."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "finish": []}
    for choice in (c for chunk in chunks for c in chunk.choices if c.index == index):
        delta = choice.delta
        found["content"] += delta.content or ""
        found["reasoning"] += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or []:
            name, arguments = found["calls"].get(call.index, ("", ""))
            name += call.function.name or ""
            found["calls"][call.index] = (name, arguments + call.function.arguments)
        found["finish"] += [choice.finish_reason] if choice.finish_reason else []
    return found
