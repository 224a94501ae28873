"""anthropic-python, and bodies as Claude Code sends them."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, ToolUseBlock
from pydantic import BaseModel

from tests.clients.conversation import (
    DESCRIPTION,
    MODEL,
    RESULT,
    SCHEMA,
    SUM,
    SUM_ANSWER,
    WEATHER_QUESTION,
    asking,
)
from tests.clients.server import Server

CLIENT = "anthropic"
TOOL: Any = {"name": "get_weather", "description": DESCRIPTION, "input_schema": SCHEMA}
# This client has no temperature of its own.
AT_ZERO: Any = {"model": MODEL, "max_tokens": 300, "extra_body": {"temperature": 0}}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
OFF: Any = {"type": "disabled"}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="EMPTY", max_retries=0) as found:
        yield found


def strictly(model: type[BaseModel], answer: BaseModel) -> None:
    model.model_validate_json(answer.model_dump_json(by_alias=True), strict=True)


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_tokens(message: Message) -> int:
    """This API counts the tokens that were in the prefix cache apart."""
    usage = message.usage
    cached = usage.cache_read_input_tokens or 0
    return usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)


def test_create(client: anthropic.Anthropic) -> None:
    message = client.messages.create(messages=asking(SUM), thinking=THINKING, **AT_ZERO)
    strictly(Message, message)
    assert (text_of(message), message.stop_reason) == (SUM_ANSWER, "end_turn")
    assert message.content[0].type == "thinking" and "12" in message.content[0].thinking
    assert isinstance(message.content[0].signature, str)
    assert prompt_tokens(message) > 0 < message.usage.output_tokens
    assert message._request_id


def test_create_without_thinking(client: anthropic.Anthropic) -> None:
    message = client.messages.create(messages=asking("Who are you?"), thinking=OFF, **AT_ZERO)
    assert [block.type for block in message.content] == ["text"]
    assert "GLM-Pocket" in text_of(message)


def test_stream(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(messages=asking(SUM), thinking=THINKING, **AT_ZERO)
    with client.messages.stream(messages=asking(SUM), thinking=THINKING, **AT_ZERO) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert text_of(final) == text_of(whole) == SUM_ANSWER
    assert prompt_tokens(final) == prompt_tokens(whole)
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
def test_tool_loop_with_its_thinking_sent_back(client: anthropic.Anthropic, stream: bool) -> None:
    history: Any = asking(WEATHER_QUESTION)
    options: Any = AT_ZERO | {"tools": [TOOL], "thinking": THINKING}
    if stream:
        with client.messages.stream(messages=history, **options) as events:
            called: Message = events.get_final_message()
    else:
        called = client.messages.create(messages=history, **options)
    assert called.stop_reason == "tool_use"
    (call,) = [block for block in called.content if isinstance(block, ToolUseBlock)]
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    output = [{"type": "text", "text": RESULT}]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": output}
    history += [{"role": "assistant", "content": called.content}]
    history += [{"role": "user", "content": [result]}]
    assert "sunny" in text_of(client.messages.create(messages=history, **options))


def test_count_tokens_is_what_is_counted(client: anthropic.Anthropic) -> None:
    for extra in ({}, {"system": "Be brief."}, {"tools": [TOOL]}):
        options: Any = {"messages": asking(WEATHER_QUESTION), **extra}
        counted = client.messages.count_tokens(model=MODEL, **options)
        message = client.messages.create(**options, **AT_ZERO)
        assert counted.input_tokens == prompt_tokens(message)


def test_stop_sequence_and_limit(client: anthropic.Anthropic) -> None:
    quiet = AT_ZERO | {"thinking": OFF}
    message = client.messages.create(messages=asking(SUM), stop_sequences=["="], **quiet)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "=")
    assert text_of(message) == "17 + 25 "
    cut = client.messages.create(messages=asking(SUM), **(quiet | {"max_tokens": 2}))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)


def test_tool_choice(client: anthropic.Anthropic) -> None:
    choices: list[Any] = [{"type": "any"}, {"type": "tool", "name": "get_weather"}]
    for choice in choices:
        message = client.messages.create(
            messages=asking(WEATHER_QUESTION), tools=[TOOL], tool_choice=choice, **AT_ZERO
        )
        assert "tool_use" in [block.type for block in message.content]
    none: Any = {"type": "none"}
    message = client.messages.create(
        messages=asking(WEATHER_QUESTION), tools=[TOOL], tool_choice=none, **AT_ZERO
    )
    assert "tool_use" not in [block.type for block in message.content]


def test_errors(client: anthropic.Anthropic) -> None:
    unknown = AT_ZERO | {"model": "other"}
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(messages=asking("Hi."), **unknown)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(messages=asking("word " * 5000), **AT_ZERO)
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    image: Any = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/a.png"}}
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(messages=[{"role": "user", "content": [image]}], **AT_ZERO)


def coding_tools() -> list[dict[str, Any]]:
    """Tools as a coding agent declares them: long descriptions, nested schemas, many of them."""
    options: dict[str, Any] = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "The absolute path. " * 20},
            "edits": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "old_string": {"type": "string"},
                        "new_string": {"type": "string"},
                        "replace_all": {"type": "boolean", "default": False},
                    },
                    "required": ["old_string", "new_string"],
                    "additionalProperties": False,
                },
            },
            "mode": {"enum": ["read", "write", None]},
            "timeout": {"anyOf": [{"type": "number", "maximum": 600000}, {"type": "null"}]},
        },
        "required": ["path"],
        "additionalProperties": False,
        "$schema": "http://json-schema.org/draft-07/schema#",
    }
    tools = [
        {"name": f"Tool{i}", "description": "Does a thing. ", "input_schema": options}
        for i in range(2)
    ]
    tools[-1]["cache_control"] = {"type": "ephemeral"}
    return tools


def coding_body(**extra: Any) -> dict[str, Any]:
    """What Claude Code sends: cached blocks, metadata, reminders, thinking and results before."""
    cached = {"cache_control": {"type": "ephemeral"}}
    reminder = "<system-reminder>\nThe day is Monday.\n</system-reminder>"
    call = {"type": "tool_use", "id": "toolu_01", "name": "Tool0", "input": {"path": "/a"}}
    failed = {"type": "tool_result", "tool_use_id": "toolu_01", "is_error": True, "content": "No."}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": reminder}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": ""},
                {"type": "redacted_thinking", "data": "abc"},
                {"type": "text", "text": "I look at it."},
                call,
            ],
        },
        {"role": "user", "content": [failed, {"type": "text", "text": "Who are you?", **cached}]},
    ]
    return {
        "model": MODEL,
        "max_tokens": 32,
        "system": [
            {"type": "text", "text": "You are a coding agent."},
            {"type": "text", "text": "Be brief.", **cached},
        ],
        "messages": turns,
        "tools": coding_tools(),
        "metadata": {"user_id": "user_1_account__session_2"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "temperature": 1,
        **extra,
    }


CODING_HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "user-agent": "claude-cli/2.0.0 (external, cli)",
}


@pytest.mark.parametrize("key", [{"x-api-key": "a"}, {"authorization": "Bearer a"}])
def test_a_coding_agents_body(http: httpx.Client, key: dict[str, str]) -> None:
    headers = CODING_HEADERS | key
    answer = http.post("/v1/messages?beta=true", json=coding_body(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["type"] == "message" and answer.headers["request-id"]
    counted = http.post(
        "/v1/messages/count_tokens?beta=true",
        json={k: v for k, v in coding_body().items() if k not in ("max_tokens", "temperature")},
        headers=headers,
    )
    found = Message.model_validate(answer.json(), strict=False)
    assert counted.json()["input_tokens"] == prompt_tokens(found)


def test_a_coding_agents_stream(http: httpx.Client) -> None:
    """Every event is named, blocks count up from 0, and each is closed before the next opens."""
    body = coding_body(stream=True)
    answer = http.post("/v1/messages?beta=true", json=body, headers=CODING_HEADERS)
    events = [
        dict(line.split(": ", 1) for line in e.split("\n")) for e in answer.text.split("\n\n") if e
    ]
    found = [json.loads(event["data"]) for event in events]
    assert [event["event"] for event in events] == [data["type"] for data in found]
    opened = [data["index"] for data in found if data["type"] == "content_block_start"]
    closed = [data["index"] for data in found if data["type"] == "content_block_stop"]
    assert opened == closed == [*range(len(opened))]
    assert found[-2]["delta"]["stop_reason"] and found[-2]["usage"]["output_tokens"] > 0
