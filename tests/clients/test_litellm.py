"""LiteLLM: the three providers by which it reaches a server like this one."""

import json
from typing import Any

import litellm
import pytest

from tests.clients.conversation import (
    MODEL,
    PERSON_QUESTION,
    RESULT,
    SUM,
    SUM_ANSWER,
    WEATHER,
    WEATHER_QUESTION,
    Person,
    asking,
)
from tests.clients.server import Server

CLIENT = "litellm"
PROVIDERS = pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic"])


def options(server: Server, provider: str) -> dict[str, Any]:
    base = server.url if provider == "anthropic" else server.api
    found: dict[str, Any] = {"model": f"{provider}/{MODEL}", "api_base": base, "api_key": "EMPTY"}
    if provider == "anthropic":  # without this there is no thinking
        found["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        found["allowed_openai_params"] = ["thinking"]
    return found | {"temperature": 0, "max_tokens": 300, "num_retries": 0}


@PROVIDERS
def test_chat(server: Server, provider: str) -> None:
    answer: Any = litellm.completion(messages=asking(SUM), **options(server, provider))
    assert answer.choices[0].message.content == SUM_ANSWER
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@PROVIDERS
def test_stream(server: Server, provider: str) -> None:
    chunks: Any = litellm.completion(messages=asking(SUM), stream=True, **options(server, provider))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SUM_ANSWER


@PROVIDERS
def test_tool_loop(server: Server, provider: str) -> None:
    history: list[Any] = asking(WEATHER_QUESTION)
    tools: Any = options(server, provider) | {"tools": [WEATHER]}
    called: Any = litellm.completion(messages=history, **tools)
    (call,) = called.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )
    history += [called.choices[0].message.model_dump()]
    history += [{"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    answer: Any = litellm.completion(messages=history, **tools)
    assert "sunny" in answer.choices[0].message.content


@PROVIDERS
def test_a_prompt_over_the_window_is_told_apart(server: Server, provider: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=asking("word " * 5000), **options(server, provider))


def test_completions(server: Server) -> None:
    given = options(server, "openai") | {"model": f"text-completion-openai/{MODEL}"}
    answer: Any = litellm.text_completion(prompt="What is", **given)
    assert isinstance(answer.choices[0].text, str)


def test_structured_output(server: Server) -> None:
    answer: Any = litellm.completion(
        messages=asking(PERSON_QUESTION),
        response_format=Person,
        **options(server, "hosted_vllm"),
    )
    assert Person.model_validate_json(answer.choices[0].message.content)


def test_responses(server: Server) -> None:
    given = options(server, "hosted_vllm")
    given["max_output_tokens"] = given.pop("max_tokens")
    answer: Any = litellm.responses(input=SUM, **given)
    texts = [part.text for item in answer.output if item.type == "message" for part in item.content]
    assert texts == [SUM_ANSWER]


def test_unknown_model(server: Server) -> None:
    given = options(server, "openai") | {"model": "openai/other"}
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=asking("Hi."), **given)
