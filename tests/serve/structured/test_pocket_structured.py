"""The embedded model at temperature 1: whatever it writes is what was asked for."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, get_args

import openai
import pydantic
import pytest

from glm_portable.engine.engine import Engine
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.glm import GLM
from glm_portable.serve.chat import Format as Layout
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from tests.serve.conversation import folded
from tests.serve.fake_engine import WAIT_S, Threaded, serving

WINDOW = 1024
SEEDS = 6


class Stop(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    name: str = pydantic.Field(max_length=4)
    nights: int = pydantic.Field(ge=0, le=30)


class Trip(pydantic.BaseModel):
    """A trip."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    city: str = pydantic.Field(min_length=1, max_length=8)
    note: str | None = pydantic.Field(max_length=4)
    stops: list[Stop] = pydantic.Field(max_length=1)


QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: Any = openai.pydantic_function_tool(Trip)
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "trip", "strict": True, "schema": Trip.model_json_schema()},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[GLM, Engine]]:
    """With drafts: an answer is the same with them, and the masks have to be as well."""
    glm = GLM.load(backend="cpu", dtype="float32")
    limits = glm.limits(max_model_len=WINDOW, max_num_seqs=SEEDS)
    drafts = SpeculativeConfig(num_speculative_tokens=2)
    with Engine(glm.model, glm.tokenizer, limits, speculative=drafts) as engine:
        yield glm, engine


@pytest.fixture(scope="module")
def clients(engine: tuple[GLM, Engine]) -> Iterator[dict[Layout, openai.OpenAI]]:
    """A server for each layout of calls."""
    glm, running = engine
    threaded = Threaded(running)
    settings = ServerSettings(port=0, served_model_names=("pocket",))
    with ExitStack() as stack:
        found = {}
        for layout in get_args(Layout):
            service = Service(threaded, glm.chat, glm.tokenizer, layout, WINDOW, settings)
            url, _, _ = stack.enter_context(serving(service))
            client = openai.OpenAI(
                base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=6 * WAIT_S
            )
            found[layout] = stack.enter_context(client)
        yield found


def choices(client: openai.OpenAI, thinking: bool, **options: Any) -> Sequence[Any]:
    """Answers of several seeds, those cut off by their length left out."""
    answer = client.chat.completions.create(
        model="pocket",
        messages=QUESTION,
        temperature=1.0,
        seed=1,
        n=SEEDS,
        max_tokens=120,
        extra_body={"chat_template_kwargs": {"enable_thinking": thinking}},
        **options,
    )
    ended = [choice for choice in answer.choices if choice.finish_reason != "length"]
    assert len(ended) >= SEEDS // 2
    return ended


@pytest.mark.parametrize("thinking", [False, True])
def test_a_schema_is_always_satisfied(clients: Any, thinking: bool) -> None:
    for choice in choices(clients["glm45"], thinking, response_format=FORMAT):
        Trip.model_validate_json(choice.message.content)
        assert choice.finish_reason == "stop"
        assert hasattr(choice.message, "reasoning_content") is thinking


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_strict_tools_arguments_always_are(clients: Any, layout: Layout, thinking: bool) -> None:
    options: Any = {"tools": [TOOL, CLOCK], "tool_choice": "required"}
    for choice in choices(clients[layout], thinking, parallel_tool_calls=False, **options):
        assert hasattr(choice.message, "reasoning_content") is thinking
        [call] = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        if call.function.name == "Trip":
            Trip.model_validate_json(call.function.arguments)
        else:
            assert call.function.name == "clock"


def test_beside_a_format_there_is_nothing_but_it_and_calls(clients: Any) -> None:
    options: Any = {"tools": [TOOL], "response_format": FORMAT, "parallel_tool_calls": False}
    for choice in choices(clients["glm45"], True, **options):
        calls = choice.message.tool_calls or []
        texts = [call.function.arguments for call in calls] or [choice.message.content]
        Trip.model_validate_json(texts[0])


STREAMED: list[tuple[Layout, Any]] = [
    ("glm45", {"response_format": FORMAT}),
    ("glm47", {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}),
]


@pytest.mark.parametrize(("layout", "options"), STREAMED)
def test_a_stream_adds_up_to_the_whole(clients: Any, layout: Layout, options: Any) -> None:
    client = clients[layout]
    common: Any = {"model": "pocket", "messages": QUESTION, "seed": 3, "max_tokens": 90, **options}
    message = client.chat.completions.create(**common).choices[0].message
    parts = folded(list(client.chat.completions.create(stream=True, **common)))
    assert parts["content"] == (message.content or "")
    assert parts["reasoning"] == (getattr(message, "reasoning_content", None) or "")
    whole = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    assert list(parts["calls"].values()) == whole
