"""LangChain: an agent's tool loop, structured output and streams."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

from tests.clients.conversation import (
    MODEL,
    PERSON_QUESTION,
    QUIET,
    RESULT,
    SUM,
    SUM_ANSWER,
    WEATHER_QUESTION,
    Person,
)
from tests.clients.server import Server

CLIENT = "langchain-openai langchain"


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    assert city == "Paris"
    return RESULT


@pytest.fixture(scope="module")
def model(server: Server) -> ChatOpenAI:
    options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(base_url=server.api, api_key=SecretStr("EMPTY"), **options)


def test_invoke(model: ChatOpenAI) -> None:
    answer = model.invoke(SUM)
    assert answer.content == SUM_ANSWER and answer.usage_metadata


def test_stream(model: ChatOpenAI) -> None:
    assert "".join(str(chunk.content) for chunk in model.stream(SUM)) == SUM_ANSWER


def test_batch(model: ChatOpenAI) -> None:
    assert [answer.content for answer in model.batch([SUM] * 4)] == [SUM_ANSWER] * 4


def test_tool_loop_of_an_agent(model: ChatOpenAI) -> None:
    agent: Any = create_agent(model, tools=[get_weather])
    *_, call, result, answer = agent.invoke({"messages": [HumanMessage(WEATHER_QUESTION)]})[
        "messages"
    ]
    assert isinstance(call, AIMessage) and isinstance(result, ToolMessage)
    assert [(c["name"], c["args"]) for c in call.tool_calls] == [("get_weather", {"city": "Paris"})]
    assert result.content == RESULT and "sunny" in answer.content


@pytest.mark.parametrize("choice", ["any", "get_weather", "auto"])
def test_tool_choice(model: ChatOpenAI, choice: str) -> None:
    bound = model.bind_tools([get_weather], tool_choice=choice)
    answer: Any = bound.invoke(WEATHER_QUESTION)
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [
        ("get_weather", {"city": "Paris"})
    ]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: ChatOpenAI, method: Any) -> None:
    structured = model.with_structured_output(Person, method=method, strict=True)
    assert isinstance(structured.invoke(PERSON_QUESTION), Person)


def test_structured_output_in_json_mode(model: ChatOpenAI) -> None:
    quiet = model.bind(extra_body=QUIET, response_format={"type": "json_object"}, max_tokens=200)
    assert str(quiet.invoke(PERSON_QUESTION).content).lstrip().startswith("{")


def test_responses(model: ChatOpenAI) -> None:
    answer = model.model_copy(update={"use_responses_api": True}).invoke(SUM)
    assert answer.text == SUM_ANSWER


def test_completions_with_null_fields(server: Server) -> None:
    options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_retries": 0}
    model = OpenAI(base_url=server.api, api_key=SecretStr("EMPTY"), max_tokens=8, **options)
    assert isinstance(model.invoke("What is"), str)
