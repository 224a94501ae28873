"""openai-python: every call that its users make of a server like this one."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel

from tests.clients.conversation import (
    MODEL,
    PERSON_QUESTION,
    QUIET,
    RESULT,
    SCHEMA,
    SUM,
    SUM_ANSWER,
    WEATHER,
    WEATHER_QUESTION,
    Person,
    asking,
)
from tests.clients.server import Server, serve

CLIENT = "openai"
AT_ZERO: Any = {"model": MODEL, "temperature": 0}
TOOL: Any = WEATHER


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.api, api_key="EMPTY", max_retries=0) as found:
        yield found


def strictly(model: type[BaseModel], answer: BaseModel) -> None:
    """The client builds its objects unchecked; this checks every type, as the API declares it."""
    model.model_validate_json(answer.model_dump_json(by_alias=True), strict=True)


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=asking(SUM), **AT_ZERO)
    strictly(ChatCompletion, answer)
    message: Any = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == (SUM_ANSWER, "stop")
    assert "12" in message.reasoning_content
    usage = answer.usage
    assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer._request_id


def test_stream(client: openai.OpenAI) -> None:
    usage: Any = {"stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(
        messages=asking(SUM), stream=True, **usage, **AT_ZERO
    )
    for chunk in (*chunks, last):
        strictly(ChatCompletionChunk, chunk)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SUM_ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == [] and isinstance(last.usage, CompletionUsage)


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(messages=asking(SUM), **AT_ZERO) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == SUM_ANSWER


def test_a_stream_that_its_reader_leaves(client: openai.OpenAI) -> None:
    endless: Any = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    with client.chat.completions.create(
        messages=asking(SUM), stream=True, **endless, **AT_ZERO
    ) as stream:
        next(iter(stream))
    assert client.chat.completions.create(messages=asking(SUM), **AT_ZERO).choices


def test_several_choices_with_seeds(client: openai.OpenAI) -> None:
    def texts(**options: Any) -> list[str | None]:
        hot: Any = {"model": MODEL, "temperature": 1.5, "max_tokens": 20, "extra_body": QUIET}
        answer = client.chat.completions.create(messages=asking("Tell me."), **hot, **options)
        return [choice.message.content for choice in answer.choices]

    assert texts(n=3, seed=4) == texts(n=3, seed=4) and len(set(texts(n=3, seed=4))) > 1


def test_stop_and_limits(client: openai.OpenAI) -> None:
    quiet: Any = AT_ZERO | {"messages": asking(SUM), "extra_body": QUIET}
    stopped = client.chat.completions.create(stop=["="], **quiet).choices[0]
    assert stopped.message.content == "17 + 25 " and stopped.finish_reason == "stop"
    limits: list[Any] = [{"max_tokens": 2}, {"max_completion_tokens": 2}]
    for limit in limits:
        cut = client.chat.completions.create(**limit, **quiet)
        assert cut.usage and cut.usage.completion_tokens == 2
        assert cut.choices[0].finish_reason == "length"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=asking(SUM), logprobs=True, top_logprobs=3, extra_body=QUIET, **AT_ZERO
    )
    strictly(ChatCompletion, answer)
    found = answer.choices[0].logprobs
    assert found and found.content
    for token in found.content:
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0
        assert len(token.top_logprobs) == 3
    text = b"".join(bytes(token.bytes or ()) for token in found.content).decode()
    assert (answer.choices[0].message.content or "nothing") in text


def test_parse(client: openai.OpenAI) -> None:
    for extra in ({}, QUIET):
        answer = client.chat.completions.parse(
            messages=asking(PERSON_QUESTION), response_format=Person, extra_body=extra, **AT_ZERO
        )
        choice = answer.choices[0]
        assert isinstance(choice.message.parsed, Person), choice
        assert choice.finish_reason == "stop"


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=asking("Say hello."),
        response_format={"type": "json_object"},
        max_tokens=200,
        extra_body=QUIET,
        **AT_ZERO,
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    else:  # a model this small may not find the end
        assert (choice.message.content or "").lstrip().startswith("{")


def test_parse_of_a_truncated_answer(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            messages=asking(PERSON_QUESTION), response_format=Person, max_tokens=2, **AT_ZERO
        )


@pytest.mark.parametrize("stream", [False, True])
def test_tool_loop(client: openai.OpenAI, stream: bool) -> None:
    history = asking(WEATHER_QUESTION)
    called: Any
    if stream:
        with client.chat.completions.stream(messages=history, tools=[TOOL], **AT_ZERO) as events:
            called = events.get_final_completion()
    else:
        called = client.chat.completions.create(messages=history, tools=[TOOL], **AT_ZERO)
    choice = called.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )
    history += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    answer = client.chat.completions.create(messages=history, tools=[TOOL], **AT_ZERO)
    assert "sunny" in (answer.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("choice", "finish"),
    [
        ("none", "stop"),
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "get_weather"}}, "stop"),
    ],
)
def test_tool_choice(client: openai.OpenAI, choice: Any, finish: str) -> None:
    question = SUM if choice == "required" else WEATHER_QUESTION
    answer = client.chat.completions.create(
        messages=asking(question), tools=[TOOL], tool_choice=choice, **AT_ZERO
    )
    strictly(ChatCompletion, answer)
    calls = answer.choices[0].message.tool_calls or []
    assert {call.type for call in calls} == (set() if choice == "none" else {"function"})
    assert answer.choices[0].finish_reason in (finish, "tool_calls" if calls else "stop")


def test_strict_tool(client: openai.OpenAI) -> None:
    strict: Any = {
        "type": "function",
        "function": TOOL["function"]
        | {"strict": True, "parameters": SCHEMA | {"additionalProperties": False}},
    }
    answer = client.chat.completions.create(
        messages=asking(WEATHER_QUESTION), tools=[strict], tool_choice="required", **AT_ZERO
    )
    call: Any
    (call,) = answer.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_completions(client: openai.OpenAI) -> None:
    prompts: Any = ["What is 17 + 25?", ["A.", "B."], [5, 6], [[5, 6], [7]]]
    for prompt, count in zip(prompts, (1, 2, 1, 2), strict=True):
        answer = client.completions.create(prompt=prompt, max_tokens=4, **AT_ZERO)
        strictly(Completion, answer)
        assert [choice.index for choice in answer.choices] == [*range(count)]


def test_completions_with_echo_and_logprobs(client: openai.OpenAI) -> None:
    ids = [5, 6, 7, 8, 9]
    for limit in (0, 1, 3):
        answer = client.completions.create(
            prompt=ids,
            echo=True,
            logprobs=2,
            max_tokens=limit,
            extra_body={"ignore_eos": True},
            **AT_ZERO,
        )
        found = answer.choices[0].logprobs
        assert found and found.token_logprobs and found.tokens and found.top_logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(ids) + limit
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        assert all(value <= 0 for value in found.token_logprobs[1:])


def test_a_stream_of_completions(client: openai.OpenAI) -> None:
    options: Any = AT_ZERO | {"prompt": "What is", "max_tokens": 12}
    whole = client.completions.create(**options).choices[0].text
    chunks = list(client.completions.create(stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(input=SUM, **AT_ZERO)
    strictly(Response, answer)
    assert answer.output_text == SUM_ANSWER and answer.status == "completed"
    assert "reasoning" in [item.type for item in answer.output]


def test_a_stream_of_responses(client: openai.OpenAI) -> None:
    with client.responses.stream(input=SUM, **AT_ZERO) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        final = stream.get_final_response()
    assert text == final.output_text == SUM_ANSWER


def test_a_tool_loop_of_responses(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "strict": False} | TOOL["function"]
    history: list[Any] = asking(WEATHER_QUESTION)
    called = client.responses.create(input=history, tools=[tool], **AT_ZERO)
    strictly(Response, called)
    (call,) = [item for item in called.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    output = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    history += [*called.output, output]
    assert "sunny" in client.responses.create(input=history, tools=[tool], **AT_ZERO).output_text


def test_parse_of_responses(client: openai.OpenAI) -> None:
    answer = client.responses.parse(input=PERSON_QUESTION, text_format=Person, **AT_ZERO)
    assert isinstance(answer.output_parsed, Person)


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list()
    assert (card.id, card.object) == (MODEL, "model") and isinstance(card.created, int)
    assert client.models.retrieve(MODEL) == card
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def refused(client: openai.OpenAI, kind: type[openai.APIStatusError], **options: Any) -> Any:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"messages": asking("Hi."), "model": MODEL} | options)
    assert caught.value.request_id and caught.value.body
    return caught.value


def test_errors_become_the_right_exceptions(client: openai.OpenAI, server: Server) -> None:
    assert refused(client, openai.NotFoundError, model="other").code == "model_not_found"
    assert refused(client, openai.BadRequestError, temperature=5).param == "temperature"
    long = refused(client, openai.BadRequestError, messages=asking("word " * 5000))
    assert long.code == "context_length_exceeded"
    assert "This model's maximum context length is" in long.message
    image = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}]
    refused(client, openai.BadRequestError, messages=[{"role": "user", "content": image}])
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="a")


def test_a_missing_key(server_python: str) -> None:
    with serve(server_python, "--api-key", "right") as running:
        for key, kind in (("wrong", openai.AuthenticationError), ("right", None)):
            with openai.OpenAI(base_url=running.api, api_key=key, max_retries=0) as client:
                if kind is None:
                    assert client.models.list().data
                else:
                    with pytest.raises(kind):
                        client.models.list()


def test_fields_of_other_servers_are_taken(client: openai.OpenAI) -> None:
    """What routers, SGLang's and vLLM's clients and OpenAI's own send beside the standard."""
    ignored = {
        "no_stop_trim": False,
        "continue_final_message": False,
        "skip_special_tokens": True,
        "separate_reasoning": True,
        "stream_reasoning": True,
        "return_hidden_states": False,
        "include_reasoning": True,
        "priority": 0,
        "cache_salt": "a",
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "a",
        "prompt_cache_key": "a",
        "verbosity": "low",
        "best_of": 1,
        "repetition_penalty": 1.0,
        "min_tokens": 1,
        "top_k": -1,
        "min_p": 0.0,
        "seed": None,
        "stop": None,
        "an_unknown_field": {"a": 1},
    }
    answer = client.chat.completions.create(messages=asking(SUM), extra_body=ignored, **AT_ZERO)
    assert answer.choices[0].message.content == SUM_ANSWER
