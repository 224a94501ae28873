"""Chat completions as openai-python sees them."""

import json
from typing import Any

import httpx
import openai
import pytest

from glm_portable.engine.types import Delta, joined
from tests.serve.conversation import CALL, HI, THOUGHT, WEATHER, chat, folded
from tests.serve.fake_engine import TOKENIZER, Running, says


def test_an_answer_with_thinking(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(THOUGHT)
    answer = chat(client)
    choice = answer.choices[0]
    assert choice.message.content == "Hello!"
    assert choice.message.reasoning_content == "A greeting."
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    assert answer.model == "pocket" and answer.object == "chat.completion"
    request = server.engine.requests[0]
    assert request.prompt == "[gMASK]<sop><|user|>\nHi.<|assistant|>"
    assert answer.usage.prompt_tokens == len(request.prompt_ids)
    assert answer.usage.completion_tokens == len(TOKENIZER.encode(THOUGHT)) + 1
    tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.total_tokens == tokens


@pytest.mark.parametrize(
    "switch",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
    ],
)
def test_thinking_switched_off(
    server: Running, client: openai.OpenAI, switch: dict[str, Any]
) -> None:
    server.engine.script = lambda request: says("\nHello <think>!")
    message = chat(client, extra_body=switch).choices[0].message
    assert server.engine.requests[0].prompt.endswith("Hi./nothink<|assistant|>\n<think></think>")
    assert message.content == "Hello <think>!"
    assert not hasattr(message, "reasoning_content")


def test_truncated_thinking_has_no_content(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("\n<think>Well, ", reason="length")
    choice = chat(client, max_tokens=5).choices[0]
    assert choice.message.content is None and choice.finish_reason == "length"
    assert choice.message.reasoning_content == "Well,"


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("text", [THOUGHT, "Hello. " + CALL, CALL + "\n" + CALL, "", "  x\n"])
def test_a_stream_adds_up_to_the_whole(
    server: Running, client: openai.OpenAI, text: str, size: int
) -> None:
    server.engine.script = lambda request: says(text, size=size)
    whole = chat(client, tools=[WEATHER]).choices[0]
    chunks = list(chat(client, tools=[WEATHER], stream=True))
    parts = folded(chunks)
    calls = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or []]
    assert parts["content"] == (whole.message.content or "")
    assert parts["reasoning"] == (getattr(whole.message, "reasoning_content", None) or "")
    assert list(parts["calls"].values()) == calls
    assert parts["finish"] == [whole.finish_reason]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_role_waits_for_the_first_token(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: []
    body = {"messages": HI, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        request = server.engine.wait_for(1)[0]
        request.send(says("Hello")[0])
        first = json.loads(next(lines).removeprefix("data: "))
        request.send(says("")[-1])
        rest = list(lines)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert rest[-2:] == ["data: [DONE]", ""]
    assert not any(line.startswith(":") for line in rest)


def test_the_events_of_a_stream(server: Running, http: httpx.Client, hello: str) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HI, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_usage_of_a_stream(server: Running, client: openai.OpenAI, hello: str) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == chat(client).usage
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(chat(client, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] > counts[0]


def test_several_choices_with_seeds(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(f"seed {request.params.seed}")
    answer = chat(client, n=3, seed=5)
    assert [choice.message.content for choice in answer.choices] == ["seed 5", "seed 6", "seed 7"]
    assert answer.usage.prompt_tokens == len(server.engine.requests[0].prompt_ids)
    chunks = list(chat(client, n=3, seed=5, stream=True))
    for index in range(3):
        assert folded(chunks, index)["content"] == f"seed {index + 5}"
        assert folded(chunks, index)["finish"] == ["stop"]


def test_logprobs(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("Hé!")
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert server.engine.requests[0].params.logprobs == 2
    ids = [*TOKENIZER.encode("Hé!"), TOKENIZER.eos_token_id[0]]
    assert [bytes(entry.bytes) for entry in content] == [TOKENIZER.token_bytes(i) for i in ids]
    assert [entry.token for entry in content] == [TOKENIZER.token_text(i) for i in ids]
    assert [entry.logprob for entry in content] == [-0.5] * len(ids)
    assert [pair.logprob for pair in content[0].top_logprobs] == [-0.5, -9999.0]
    chunks = list(chat(client, logprobs=True, top_logprobs=2, stream=True))
    parts = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert [entry for part in parts for entry in part] == content
    assert chat(client).choices[0].logprobs is None


def test_parameters_reach_the_engine(server: Running, client: openai.OpenAI, hello: str) -> None:
    extra: dict[str, Any] = {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1}
    extra |= {"ignore_eos": True, "stop_token_ids": [7], "seed": 1.0, "best_of": 1}
    chat(
        client,
        temperature=0,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 1.5},
        stop="END",
        max_tokens=9,
        max_completion_tokens=8,
        extra_body=extra | {"min_tokens": 2},
    )
    params = server.engine.requests[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 0, 0.1)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert (params.repetition_penalty, params.logit_bias) == (1.1, {5: 1.5})
    assert (params.stop, params.stop_token_ids, params.ignore_eos) == (("END",), (7,), True)
    assert (params.max_tokens, params.min_tokens, params.seed) == (8, 2, 1)
    assert params.logprobs is None


def test_what_clients_send_back_is_accepted(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("\n<think>Need it.</think>\n" + CALL)
    message = chat(client, tools=[WEATHER]).choices[0].message
    history = [*HI, message, {"role": "tool", "tool_call_id": "none", "content": "sunny"}]
    server.engine.script = lambda request: says("Sunny.")
    ignored = {"separate_reasoning": True, "cache_salt": "x", "user": "me", "store": False}
    nulls = {"logprobs": None, "seed": None, "stop": None, "n": None, "response_format": None}
    answer = client.chat.completions.create(
        model="pocket", messages=history, extra_body=ignored | nulls
    )
    assert answer.choices[0].message.content == "Sunny."
    assert "Need it." in server.engine.requests[1].prompt
    assert "<arg_value>Bonn</arg_value>" in server.engine.requests[1].prompt


def test_no_line_break_hides_in_an_event(server: Running, http: httpx.Client) -> None:
    text = "a\u2028b\u0085c\u2029d\ne"
    server.engine.script = lambda request: says(text)
    response = http.post("/v1/chat/completions", json={"messages": HI, "stream": True})
    events = [line for line in response.text.splitlines() if line]
    deltas = [json.loads(e.removeprefix("data: "))["choices"][0]["delta"] for e in events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [("\n<think>A greeting.</think>\nHello!", "<think>A greeting.</think>"), ("Hello!", "")],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at_once", [1, 4])
def test_the_tokens_of_the_thinking_are_counted(
    server: Running, client: openai.OpenAI, text: str, reasoning: str, stream: bool, at_once: int
) -> None:
    server.engine.script = lambda request: drafted(says(text), at_once)
    if stream:
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = list(chat(client, stream=True, stream_options=options))
        counts = [chunk.usage.completion_tokens_details.reasoning_tokens for chunk in chunks]
        assert counts == sorted(counts)
        usage = chunks[-1].usage
    else:
        usage = chat(client).usage
    wanted = len(TOKENIZER.encode(reasoning))
    assert usage.completion_tokens_details.reasoning_tokens == wanted < usage.completion_tokens


def drafted(deltas: list[Delta], at_once: int) -> list[Delta]:
    """The first alone and then as many at once as a step with drafts may give."""
    groups = [deltas[i : i + at_once] for i in range(1, len(deltas), at_once)]
    return [deltas[0], *map(joined, groups)]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_after_the_only_call_are_not_counted_when_they_came_with_it(
    server: Running, client: openai.OpenAI, stream: bool
) -> None:
    counts = []
    said = says(f"{CALL}\n{CALL} And so on, and on.")
    for at_once in (1, 7):
        server.engine.script = lambda request, n=at_once: drafted(said, n)  # type: ignore[misc]
        options: dict[str, Any] = {"tools": [WEATHER], "parallel_tool_calls": False}
        if stream:
            options["stream_options"] = {"include_usage": True}
            counts.append(list(chat(client, stream=True, **options))[-1].usage.completion_tokens)
        else:
            answer = chat(client, logprobs=True, **options)
            assert len(answer.choices[0].message.tool_calls or []) == 1
            assert answer.choices[0].finish_reason == "tool_calls"
            counts.append(answer.usage.completion_tokens)
            assert len(answer.choices[0].logprobs.content) == counts[-1]
    assert counts[0] == counts[1] < len(said)
