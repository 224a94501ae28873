"""Scores of a given text, as evaluation tools ask for them through /v1/completions."""

import json
from typing import Any

import httpx
import openai
import pytest
from msgspec.structs import replace

from glm_portable.serve import logprobs
from glm_portable.serve.logprobs import CompletionLogprobs, prompt_logprobs
from tests.serve.fake_engine import TOKENIZER, Running, says, scores_of

CONTEXT = "[gMASK]<sop>Once upon"
PROMPT = f"{CONTEXT} a time, Hé🙂"
IDS = TOKENIZER.encode_template(PROMPT)


def score(http: httpx.Client, prompt: Any = PROMPT, **options: Any) -> Any:
    body = {"prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    return http.post("/v1/completions", json=body | options).raise_for_status().json()


def as_lm_eval_reads_it(choice: Any, context_length: int) -> tuple[float, bool]:
    """The sum and whether the continuation is greedy, by lm-eval's arithmetic."""
    logprobs = choice["logprobs"]
    tokens = logprobs["token_logprobs"][context_length:-1]
    tops = logprobs["top_logprobs"][context_length:-1]
    greedy = all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
    return sum(tokens), greedy


@pytest.mark.parametrize("text", ["x", ""])  # "": all that is generated is end-of-text
@pytest.mark.parametrize("ids", [False, True])
def test_what_lm_eval_reads(server: Running, http: httpx.Client, text: str, ids: bool) -> None:
    server.engine.script = lambda request: [replace(says(text)[0], finish_reason="length")]
    answer = score(http, IDS if ids else PROMPT)
    [choice] = answer["choices"]
    assert len(choice["logprobs"]["tokens"]) == len(IDS) + 1
    assert answer["usage"]["prompt_tokens"] == len(IDS)
    assert answer["usage"]["completion_tokens"] == 1
    context = len(TOKENIZER.encode_template(CONTEXT))
    wanted = scores_of(IDS)[context - 1 :]
    total, greedy = as_lm_eval_reads_it(choice, context)
    assert total == pytest.approx(sum(entry.logprob for entry in wanted))
    assert greedy == all(entry.rank == 1 for entry in wanted)
    assert server.engine.requests[0].params.prompt_logprobs == 1


@pytest.mark.parametrize("parity", [0, 1])
def test_greedy_is_told_by_equal_floats(server: Running, http: httpx.Client, parity: int) -> None:
    ids = [i for i in range(40, 80) if i % 2 == parity and i not in TOKENIZER.eos_token_id]
    _, greedy = as_lm_eval_reads_it(score(http, ids)["choices"][0], 1)
    assert greedy == (parity == 0)


def test_every_list_has_an_entry_a_token(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says("é!")
    choice = score(http, logprobs=2)["choices"][0]
    logprobs = choice["logprobs"]
    assert {len(entries) for entries in logprobs.values()} == {len(logprobs["tokens"])}
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert choice["text"] == PROMPT + "é!"
    assert logprobs["text_offset"][0] == 0
    generated = TOKENIZER.encode("é!")
    assert logprobs["text_offset"][len(IDS)] == len(PROMPT)
    assert len(logprobs["tokens"]) == len(IDS) + len(generated) + 1
    for token, logprob, top in zip(
        logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:],
        strict=True,
    ):  # fmt: skip
        assert top[token] == logprob and len(top) == 2


def test_offsets_are_of_the_text_that_is_shown(server: Running, http: httpx.Client) -> None:
    """Control tokens are in the prompt's text, but not in that of an answer that goes on."""
    first, second = says("ab", size=9), says("cd", size=9)
    first[-1] = replace(first[-1], finish_reason=None)  # an end-of-text that ends nothing
    server.engine.script = lambda request: first + second
    choice = score(http, "<|user|>Hi")["choices"][0]
    assert choice["text"] == "<|user|>Hiabcd"
    pairs = zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True)
    shown = [(token, at) for token, at in pairs if not token.startswith("<|end")]
    assert "".join(token for token, _ in shown) == choice["text"]
    assert all(choice["text"].startswith(token, at) for token, at in shown)


def test_parts_of_one_character_do_not_collide() -> None:
    ids = range(TOKENIZER.vocab_size + 3)  # the last three have no text
    found = CompletionLogprobs(TOKENIZER).prompt(ids, scores_of(ids), 2)
    assert len(set(found["tokens"])) == len(ids)
    assert all(len(top) == 2 for top in found["top_logprobs"][1:])


@pytest.mark.parametrize("logprobs", [None, 0, 3])
def test_nothing_is_generated(server: Running, http: httpx.Client, logprobs: int | None) -> None:
    server.engine.script = lambda request: says("never shown")[:1] + says("")
    answer = score(http, max_tokens=0, logprobs=logprobs)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == len(IDS)
    tokens = None if logprobs is None else len(choice["logprobs"]["tokens"])
    assert tokens == (None if logprobs is None else len(IDS))
    assert server.engine.requests[0].params.max_tokens == 1


def test_without_echo_only_the_answer_has_logprobs(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says("x")
    choice = score(http, echo=False)["choices"][0]
    assert choice["text"] == "x" and len(choice["logprobs"]["tokens"]) == 2
    assert server.engine.requests[0].params.prompt_logprobs is None


def test_several_prompts_and_choices(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says("!")
    choices = score(http, [[5, 6], [7, 8, 9]], n=2)["choices"]
    assert [len(c["logprobs"]["tokens"]) for c in choices] == [4, 4, 5, 5]
    assert [c["text"] for c in choices[::2]] == [
        TOKENIZER.text_of(ids) + "!" for ids in ([5, 6], [7, 8, 9])
    ]


def test_a_stream_adds_up_to_the_whole(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("Hé🙂!")
    options: Any = {"model": "pocket", "prompt": PROMPT, "echo": True, "logprobs": 2}
    whole = client.completions.create(**options).choices[0]
    parts = [c.choices[0] for c in client.completions.create(stream=True, **options)]
    assert "".join(part.text for part in parts) == whole.text
    assert whole.logprobs
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [entry for part in parts for entry in getattr(part.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)


def test_vllms_field(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says("!")
    choice = score(http, echo=False, logprobs=None, prompt_logprobs=1)["choices"][0]
    found = choice["prompt_logprobs"]
    assert found == json.loads(json.dumps(prompt_logprobs(scores_of(IDS), 1, TOKENIZER)))
    assert found[0] is None and len(found) == len(IDS) and choice["logprobs"] is None
    for token, entries in zip(IDS[1:], found[1:], strict=True):
        assert entries[str(token)]["rank"] == 1 + token % 2
        assert entries[str(token)]["decoded_token"] == TOKENIZER.token_text(token)
        assert len(entries) == 1 + token % 2


def test_vllms_field_in_chat(server: Running, http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "prompt_logprobs": 0, "n": 2}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    asked = [request.params.prompt_logprobs for request in server.engine.wait_for(2)]
    assert asked == [0, None]  # once for both choices
    plain = http.post("/v1/chat/completions", json=body | {"prompt_logprobs": None}).json()
    assert "prompt_logprobs" not in plain


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_vllms_field_has_no_place_in_a_stream(http: httpx.Client, path: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "prompt": "Hi", "prompt_logprobs": 1, "stream": True}
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 400 and "no place" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_more_than_memory_should_hold_is_refused(
    server: Running, http: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "MAX_PROMPT_LOGPROBS", 60)
    messages = [{"role": "user", "content": "Hi"}]
    for count, status in ((1, 200), (20, 400)):
        body = {"messages": messages, "prompt": [5] * 20, "prompt_logprobs": count}
        response = http.post(f"/v1/{path}", json=body)
        assert response.status_code == status, response.text
    assert "send fewer prompts" in response.json()["error"]["message"]
    assert len(server.engine.requests) == 1
