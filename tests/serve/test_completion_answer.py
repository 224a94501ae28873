"""Text completions as openai-python and evaluation tools see them."""

import json
from typing import Any

import httpx
import openai
import pytest

from glm_portable.engine.types import TokenLogprob
from glm_portable.serve.logprobs import CompletionLogprobs
from tests.serve.fake_engine import TOKENIZER, Running, says


def complete(client: openai.OpenAI, prompt: Any = "Once", **options: Any) -> Any:
    return client.completions.create(model="zai/pocket", prompt=prompt, **options)


def test_one_prompt(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(" upon\n<think>a time")
    answer = complete(client)
    assert answer.choices[0].text == " upon\n<think>a time"
    assert (answer.object, answer.model) == ("text_completion", "zai/pocket")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(TOKENIZER.encode("Once"))
    assert server.engine.requests[0].params.max_tokens == 16


def test_control_tokens_are_meant_in_raw_prompts(
    server: Running, client: openai.OpenAI, hello: str
) -> None:
    complete(client, "[gMASK]<sop><|user|>\nHi")
    user = TOKENIZER.control_tokens["<|user|>"]
    assert server.engine.requests[0].prompt_ids[2] == user


@pytest.mark.parametrize(
    "prompts", [["One", "Two"], [[5, 6, 7], [8.0, 9]], [5, 6, 7], ["One"], [[5]]]
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_in_every_form(
    server: Running, client: openai.OpenAI, prompts: list[Any], stream: bool
) -> None:
    server.engine.script = lambda request: says(f"{request.prompt_ids}")
    several = isinstance(prompts[0], list | str)
    each = [[p] if isinstance(p, str) else p for p in (prompts if several else [prompts])]
    expected = [
        TOKENIZER.encode(p[0]) if isinstance(p[0], str) else list(map(int, p)) for p in each
    ]
    answer = complete(client, prompts, n=2, stream=stream)
    if stream:
        text = [""] * (2 * len(expected))
        for chunk in answer:
            text[chunk.choices[0].index] += chunk.choices[0].text
    else:
        text = [choice.text for choice in answer.choices]
        assert answer.usage.prompt_tokens == sum(map(len, expected))
    assert text == [str(ids) for ids in expected for _ in range(2)]


def test_logprobs(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("Hé🙂!")
    found = complete(client, logprobs=1).choices[0].logprobs
    ids = [*TOKENIZER.encode("Hé🙂!"), TOKENIZER.eos_token_id[0]]
    assert len(found.tokens) == len(ids) == len(found.token_logprobs) == len(found.text_offset)
    assert found.text_offset[0] == 0 and found.text_offset[-1] == len("Hé🙂!")
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top[token] == logprob == max(top.values())
    split = [i for i in ids if b"\xf0" in TOKENIZER.token_bytes(i)]
    assert any(token.startswith("bytes:\\xf0") for token in found.tokens) == bool(split)


def test_a_token_of_low_rank_is_among_its_alternatives() -> None:
    token = TokenLogprob(5, -7.0, ((6, -0.5), (7, -float("inf"))))
    found = CompletionLogprobs(TOKENIZER).take([token])
    texts = [TOKENIZER.token_text(i) for i in (5, 6, 7)]
    assert found["tokens"] == texts[:1] and found["token_logprobs"] == [-7.0]
    assert found["top_logprobs"] == [dict(zip(texts, (-7.0, -0.5, -9999.0), strict=True))]


def test_a_stream_adds_up_to_the_whole(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("Hé🙂, all of you!", size=2)
    whole = complete(client, logprobs=3).choices[0]
    options = {"include_usage": True}
    chunks = list(complete(client, logprobs=3, stream=True, stream_options=options))
    parts = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(part.text for part in parts) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [x for part in parts for x in getattr(part.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)
    assert [part.finish_reason for part in parts][-1] == whole.finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(whole.logprobs.tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_tokens_of_a_stream_are_counted(server: Running, client: openai.OpenAI) -> None:
    """Also in pieces that are nothing but text."""
    text = "Hé🙂, all of you!"
    server.engine.script = lambda request: says(text)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens == len(TOKENIZER.encode(text)) + 1


def test_the_stop_that_ended_it_is_named(server: Running, http: httpx.Client) -> None:
    def stopped(request: Any) -> Any:
        last = says("")[-1]
        return [type(last)(last.token_ids, "x", finish_reason="stop", stop_reason="END")]

    server.engine.script = stopped
    body = {"prompt": "a", "stop": ["END"]}
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["stop_reason"], choice["finish_reason"]) == ("END", "stop")
    lines = http.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0] == choice


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], ["a", ""], [5, "a"], [[5], "a"], [-1], [1.5], [True], 5, None, {}, ["a"] * 257],
)
def test_wrong_prompts_are_refused(server: Running, http: httpx.Client, prompt: Any) -> None:
    response = http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "prompt"
    assert server.engine.requests == []


def test_too_many_choices_are_refused(server: Running, http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"prompt": ["a"] * 100, "n": 3})
    assert response.status_code == 400 and "prompts times n" in response.text
