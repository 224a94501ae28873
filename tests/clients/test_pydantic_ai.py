"""pydantic-ai: an agent's tool loop over each of the three APIs, structured output, streams."""

import asyncio
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.conversation import (
    MODEL,
    PERSON_QUESTION,
    RESULT,
    SUM,
    SUM_ANSWER,
    WEATHER_QUESTION,
    Person,
)
from tests.clients.server import Server

CLIENT = "pydantic-ai-slim"
AT_ZERO = ModelSettings(temperature=0, max_tokens=400)


def model_of(server: Server, api: str) -> Model[Any]:
    if api == "anthropic":
        anthropic = AnthropicProvider(base_url=server.url, api_key="EMPTY")
        return AnthropicModel(MODEL, provider=anthropic)
    openai = OpenAIProvider(base_url=server.api, api_key="EMPTY")
    kind = OpenAIResponsesModel if api == "responses" else OpenAIChatModel
    return kind(MODEL, provider=openai)


APIS = pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])


@APIS
def test_tool_loop(server: Server, api: str) -> None:
    agent = Agent(model_of(server, api), model_settings=AT_ZERO)
    asked: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the weather of a city.

        Args:
            city: The city.
        """
        asked.append(city)
        return RESULT

    answer = agent.run_sync(WEATHER_QUESTION)
    assert asked == ["Paris"] and "sunny" in answer.output
    assert answer.usage.requests == 2 and answer.usage.output_tokens > 0


@APIS
def test_stream(server: Server, api: str) -> None:
    # Without the setting, this API has no thinking; the others do not know it.
    thinking = AnthropicModelSettings(
        anthropic_thinking={"type": "enabled", "budget_tokens": 1024}, **AT_ZERO
    )
    agent = Agent(model_of(server, api), model_settings=thinking)

    async def answer() -> str:
        async with agent.run_stream(SUM) as stream:
            return "".join([piece async for piece in stream.stream_text(delta=True)])

    assert asyncio.run(answer()) == SUM_ANSWER


def test_output_by_a_tool(server: Server) -> None:
    agent = Agent(model_of(server, "chat"), output_type=Person, model_settings=AT_ZERO, retries=0)
    answer = agent.run_sync(PERSON_QUESTION)
    assert isinstance(answer.output, Person)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_native_output(server: Server, api: str) -> None:
    from pydantic_ai import NativeOutput

    agent = Agent(
        model_of(server, api), output_type=NativeOutput(Person), model_settings=AT_ZERO, retries=0
    )
    answer = agent.run_sync(PERSON_QUESTION)
    assert isinstance(answer.output, Person)


def test_a_conversation_goes_on(server: Server) -> None:
    agent = Agent(model_of(server, "chat"), model_settings=AT_ZERO)
    first = agent.run_sync(SUM)
    again = agent.run_sync(SUM, message_history=first.all_messages())
    assert first.output == SUM_ANSWER and again.output
