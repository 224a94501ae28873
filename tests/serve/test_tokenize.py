"""/tokenize, /detokenize and /tokenizer_info as lm-eval and vLLM's clients use them."""

import json
from typing import Any

import httpx
import pytest

from glm_portable.serve.service import COUNTED
from tests.serve.conversation import HI, WEATHER
from tests.serve.fake_engine import CHAT, TOKENIZER, WINDOW, Running, fake_server

EACH_PREFIX = pytest.mark.parametrize("prefix", ["", "/v1"])


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    return http.post(path, json=body).raise_for_status().json()


@EACH_PREFIX
@pytest.mark.parametrize("text", ["", "Hé🙂", "[gMASK]<sop><|user|>\nHi<|endoftext|>"])
def test_a_text_and_back(http: httpx.Client, prefix: str, text: str) -> None:
    found = post(http, f"{prefix}/tokenize", prompt=text, add_special_tokens=False)
    ids = TOKENIZER.encode_template(text)
    assert found["tokens"] == ids and found["token_strs"] is None
    assert (found["count"], found["max_model_len"]) == (len(ids), WINDOW)
    assert post(http, f"{prefix}/detokenize", tokens=ids) == {"prompt": text}


def test_the_text_of_each_token(http: httpx.Client) -> None:
    found = post(http, "/tokenize", prompt="<sop>Hi there", return_token_strs=True)
    assert "".join(found["token_strs"]) == "<sop>Hi there"
    assert len(found["token_strs"]) == found["count"]


@pytest.mark.parametrize(
    ("extra", "switches"),
    [
        ({}, {}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"tools": [WEATHER]}, {}),
    ],
)
def test_a_conversation_has_the_tokens_of_its_prompt(
    server: Running, http: httpx.Client, extra: dict[str, Any], switches: dict[str, Any]
) -> None:
    found = post(http, "/tokenize", model="pocket", messages=HI, **extra)
    prompt = CHAT.encode(HI, extra.get("tools"), chat_template_kwargs=switches)
    assert found["tokens"] == prompt.token_ids
    usage = post(http, "/v1/chat/completions", messages=HI, **extra)["usage"]
    assert usage["prompt_tokens"] == found["count"]


def test_the_tokenizers_marks_are_tokens(http: httpx.Client) -> None:
    info = http.get("/tokenizer_info").json()
    assert info == http.get("/v1/tokenizer_info").json()
    end = post(http, "/tokenize", prompt=info["eos_token"], add_special_tokens=False)["tokens"]
    assert end == [TOKENIZER.eos_token_id[0]]
    assert info["pad_token"] == info["eos_token"] and info["bos_token"] is None
    assert info["chat_template"] == CHAT.source and "[gMASK]" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "either prompt or messages"),
        ("/tokenize", {"prompt": 5}, "prompt should be a valid string"),
        ("/tokenize", {"prompt": "\ud800"}, "not valid JSON"),
        ("/tokenize", {"messages": [{"role": "dog"}]}, "messages[0].role"),
        ("/tokenize", {"messages": HI, "chat_template_kwargs": {"a": 1}}, "'a' is not supported"),
        ("/detokenize", {}, "tokens is required"),
        ("/detokenize", {"tokens": "a"}, "tokens should be"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [5, TOKENIZER.vocab_size]}, "the vocabulary has the ids 0 to"),
    ],
)
def test_what_cannot_be_done_is_said(
    http: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    content, kind = json.dumps(body), {"Content-Type": "application/json"}
    response = http.post(path, content=content, headers=kind)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


def test_lists_are_bounded(http: httpx.Client) -> None:
    response = http.post("/detokenize", json={"tokens": [5] * (COUNTED + 1)})
    assert response.status_code == 400 and "at most" in response.json()["error"]["message"]


def test_another_model_is_not_found(http: httpx.Client) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        assert http.post(path, json=body | {"model": "other"}).status_code == 404


def test_the_key_is_asked_for() -> None:
    with fake_server(api_keys=("secret",)) as running:
        for path in ("/tokenizer_info", "/v1/tokenizer_info"):
            assert httpx.get(running.url + path).status_code == 401
        assert httpx.post(f"{running.url}/tokenize", json={"prompt": "a"}).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/tokenizer_info", "/openapi.json"])
def test_head_is_get_without_the_body(http: httpx.Client, path: str) -> None:
    head, get = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


def test_head_does_not_open_other_paths(http: httpx.Client) -> None:
    assert http.head("/v1/chat/completions").status_code == 405
    assert http.head("/nothing").status_code == 404
