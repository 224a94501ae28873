"""Thinking in the history reaches the template as each family expects it, whatever API it took."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from glm_portable.serve.anthropic.history import chat_messages as from_blocks
from glm_portable.serve.responses.history import chat_messages as from_items
from tests.serve.fake_engine import Running
from tests.serve.test_chat import TEMPLATES, VECTORS

# GLM's own list of outputs has no counterpart in the other APIs.
SHARED = [vector for vector in VECTORS if vector["name"] != "list of outputs"]


def renamed(messages: list[Any]) -> list[Any]:
    """As vLLM's router sends them."""
    names = {"reasoning_content": "reasoning"}
    return [{names.get(name, name): value for name, value in m.items()} for m in messages]


def as_blocks(messages: list[Any]) -> list[Any]:
    """Through Anthropic's API: results of tools are blocks of the user's message."""
    found: list[Any] = []
    for message in messages:
        role, content = message["role"], [{"type": "text", "text": message["content"] or ""}]
        if role == "tool":
            result = {"type": "tool_result", "tool_use_id": "x", "content": message["content"]}
            if found[-1]["content"][-1]["type"] == "tool_result":
                found[-1]["content"].append(result)
            else:
                found.append({"role": "user", "content": [result]})
            continue
        if "reasoning_content" in message:
            thinking = {"type": "thinking", "thinking": message["reasoning_content"]}
            content.insert(0, thinking | {"signature": ""})
        for call in message.get("tool_calls", ()):
            function = call["function"]
            content.append(
                {"type": "tool_use", "id": "x", "name": function["name"], "input": loaded(function)}
            )
        found.append({"role": role, "content": content})
    return from_blocks(None, found)


def as_items(messages: list[Any]) -> list[Any]:
    """Through the Responses API: thinking, text and calls are items of their own."""
    found: list[Any] = []
    for message in messages:
        if message["role"] == "tool":
            output = {"call_id": "x", "output": message["content"]}
            found.append({"type": "function_call_output", **output})
            continue
        if "reasoning_content" in message:
            part = {"type": "reasoning_text", "text": message["reasoning_content"]}
            found.append({"type": "reasoning", "summary": [], "content": [part]})
        if message["content"] or message["role"] != "assistant":
            found.append({"role": message["role"], "content": message["content"]})
        for call in message.get("tool_calls", ()):
            function = {"name": call["function"]["name"], "arguments": dumped(call["function"])}
            found.append({"type": "function_call", "call_id": "x", **function})
    return from_items(None, found)


def loaded(function: Any) -> Any:
    arguments = function["arguments"]
    return json.loads(arguments or "{}") if isinstance(arguments, str) else arguments


def dumped(function: Any) -> str:
    return json.dumps(loaded(function))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("through", [renamed, as_blocks, as_items])
@pytest.mark.parametrize("vector", SHARED, ids=[vector["name"] for vector in SHARED])
def test_prompts_are_those_of_the_published_templates(
    name: str, vector: dict[str, Any], through: Callable[[list[Any]], list[Any]]
) -> None:
    prompt = TEMPLATES[name].encode(
        through(vector["messages"]),
        vector["tools"],
        chat_template_kwargs=vector["chat_template_kwargs"],
    )
    assert prompt.text == vector["expected"][name]


@pytest.mark.parametrize(
    "switch",
    [
        {"chat_template_kwargs": {"clear_thinking": False}},
        {"thinking": {"type": "enabled", "clear_thinking": False}},  # as Z.ai's own API has it
    ],
)
def test_the_switch_reaches_the_template(
    server: Running, http: httpx.Client, switch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "chat", TEMPLATES["glm47"])
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "I add."},
        {"role": "user", "content": "2+2?"},
    ]
    for extra in ({}, switch):
        http.post("/v1/chat/completions", json={"messages": messages, **extra})
    dropped, kept = (request.prompt for request in server.engine.wait_for(2))
    assert "<think>I add.</think>2" in kept and "I add." not in dropped
