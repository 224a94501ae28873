"""Whatever a client sends, the answer is an OpenAI error object with the right status."""

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from glm_portable.engine.engine import EngineDraining
from glm_portable.engine.types import Delta
from tests.serve.conversation import HI, chat
from tests.serve.fake_engine import WINDOW, Running, eventually, says

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
VALID: dict[str, dict[str, Any]] = {CHAT: {"messages": HI}, COMPLETIONS: {"prompt": "a"}}
ENDPOINTS = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["message"].endswith(".") and len(error["message"]) < 300
    return error


@ENDPOINTS
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"}", b"null", b"[]", b'"a"', b"1", b"{'a': 1}", b'{"a": 1,}', b'{"a"}'),
        *(b"\xff\xfe", b'{"model": "\xff"}', b'{"model": "a\nb"}', b'{"user": "\\ud800"}'),
        *(b'{"a":' * 5000, b"[" * 100_000, b'{"n": 1' + b"0" * 5000 + b"}", b"\x00"),
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "prompt": "\\ud800"}',
    ],
)
def test_malformed_bodies(server: Running, http: httpx.Client, path: str, body: bytes) -> None:
    error_of(http.post(path, content=body, headers=JSON), 400)
    assert server.engine.requests == []


@ENDPOINTS
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [0, -1, 17, 10**30, 1.5, "1", True, [1]]),
        ("max_tokens", [-1, 2**31, 1.5, "5", True]),
        ("min_tokens", [-1, 2**31, "5"]),
        ("temperature", [-0.1, 2.1, "1", True, [], {}]),
        ("top_p", [0, 1.1, -1, "1"]),
        ("top_k", [-2, 2**31, 1.5, "1"]),
        ("min_p", [-0.1, 1.1]),
        ("presence_penalty", [-2.1, 2.1]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("repetition_penalty", [0, -1, 10.1]),
        ("seed", [2**63, 1.5, "1", True]),
        ("stop", ["", [""], ["a"] * 17, "a" * 1025, [1], 1, {}]),
        ("stop_token_ids", [[-1], ["a"], 5, [1] * 257]),
        ("logit_bias", [{"a": 1}, {"1": 101}, {"1": "a"}, {"1": True}, {"-1": 1}, [], 5]),
        ("ignore_eos", [1, "true"]),
        ("stream", [1, "true"]),
        ("stream_options", [1, {"include_usage": 1}]),
        ("model", [5, {}]),
    ],
)
def test_wrong_values_are_named(
    server: Running, http: httpx.Client, path: str, field: str, values: list[Any]
) -> None:
    for value in values:
        error = error_of(http.post(path, json=VALID[path] | {field: value}), 400)
        assert str(error["param"]).startswith(field), (value, error)
        assert error["message"].startswith(field)
    assert server.engine.requests == []


@ENDPOINTS
def test_numbers_that_are_not_json(server: Running, http: httpx.Client, path: str) -> None:
    fields = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
    for value in ("NaN", "Infinity", "-Infinity", "1e999"):
        wrong = [f'"{name}": {value}' for name in (*fields, "repetition_penalty", "seed")]
        for field in (*wrong, f'"logit_bias": {{"1": {value}}}'):
            body = json.dumps(VALID[path])[:-1] + f", {field}}}"
            error_of(http.post(path, content=body, headers=JSON), 400)


@ENDPOINTS
@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "structural_tag", "structures": []}},
        {"suffix": "x"},
        {"best_of": 2},
        {"prompt_embeds": "AAAA"},
        {"use_beam_search": True},
        {"chat_template": "{{ messages }}"},
        {"truncate_prompt_tokens": 5},
        {"stop_regex": "a+"},
        {"thinking_token_budget": 0},
        {"return_tokens_as_token_ids": True},
        {"lora_path": "a"},
    ],
)
def test_what_is_not_supported_is_refused(
    server: Running, http: httpx.Client, path: str, extra: dict[str, Any]
) -> None:
    error = error_of(http.post(path, json=VALID[path] | extra), 400)
    assert "support" in error["message"] and next(iter(extra)) in error["message"]
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("path", "extra", "limit"),
    [
        (CHAT, {"max_tokens": 3}, 3),
        (CHAT, {"max_tokens": 9, "max_completion_tokens": 3}, 3),
        (COMPLETIONS, {"max_tokens": 3}, 3),
        (COMPLETIONS, {}, 16),
    ],
)
def test_more_tokens_than_the_most_are_no_least(
    server: Running, http: httpx.Client, path: str, extra: dict[str, Any], limit: int
) -> None:
    body = VALID[path] | extra
    error = error_of(http.post(path, json=body | {"min_tokens": limit + 1}), 400)
    assert f"a min_tokens of {limit + 1}, but at most {limit} tokens" in error["message"]
    assert server.engine.requests == []
    assert http.post(path, json=body | {"min_tokens": limit}).status_code == 200


@ENDPOINTS
@pytest.mark.parametrize(
    "extra", [{"response_format": {"type": "text"}}, {"echo": False}, {"suffix": None}]
)
def test_what_asks_for_nothing_is_accepted(
    server: Running, http: httpx.Client, path: str, extra: dict[str, Any]
) -> None:
    assert http.post(path, json=VALID[path] | extra).status_code == 200


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (None, "messages"),
        ([5], "messages[0]"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "robot", "content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], None),
        ([{"role": "assistant", "tool_calls": [{"function": 5}]}], None),
        ([{"role": "user", "content": "a"}] * 10_001, "messages"),
    ],
)
def test_wrong_messages(
    server: Running, http: httpx.Client, messages: Any, param: str | None
) -> None:
    error = error_of(http.post(CHAT, json={"messages": messages}), 400)
    assert str(error["param"]).startswith(param or "messages[0]")
    assert server.engine.requests == []


def test_a_missing_field_is_named(server: Running, http: httpx.Client) -> None:
    for path, field in ((CHAT, "messages"), (COMPLETIONS, "prompt")):
        error = error_of(http.post(path, json={"model": "pocket"}), 400)
        assert error["param"] == field and error["message"] == f"{field} is required."


@pytest.mark.parametrize(
    "extra",
    [{"top_logprobs": 2}, {"logprobs": 2}, {"logprobs": True, "top_logprobs": 21}],
)
def test_wrong_logprobs_of_a_chat(server: Running, http: httpx.Client, extra: Any) -> None:
    assert "logprobs" in error_of(http.post(CHAT, json=VALID[CHAT] | extra), 400)["message"]


@pytest.mark.parametrize(
    "kwargs",
    [5, {"enable_thinking": "no"}, {"tokenize": True}, {"chat_template": "{{ 1 }}"}, {"tools": 1}],
)
def test_template_variables_are_few(server: Running, http: httpx.Client, kwargs: Any) -> None:
    body = VALID[CHAT] | {"chat_template_kwargs": kwargs}
    assert error_of(http.post(CHAT, json=body), 400)["param"] == "chat_template_kwargs"


@ENDPOINTS
def test_unknown_model(server: Running, http: httpx.Client, path: str) -> None:
    error = error_of(http.post(path, json=VALID[path] | {"model": "gpt"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "pocket" in error["message"]


@ENDPOINTS
def test_a_prompt_too_long(server: Running, http: httpx.Client, path: str) -> None:
    long = "word " * 2 * WINDOW
    body = {"prompt": long, "messages": [{"role": "user", "content": long}], "stream": True}
    error = error_of(http.post(path, json=body), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 512")


def test_if_one_of_several_prompts_is_refused_none_runs(
    server: Running, http: httpx.Client
) -> None:
    server.engine.script = lambda request: []
    error_of(http.post(COMPLETIONS, json={"prompt": [[5], [5] * (WINDOW + 1)]}), 400)
    assert [request.cancelled.is_set() for request in server.engine.requests] == [True]
    eventually(lambda: not server.service.running)


@ENDPOINTS
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"]
)
def test_only_json_is_read(server: Running, http: httpx.Client, path: str, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    error_of(http.post(path, content=json.dumps(VALID[path]), headers=headers), 415)


@ENDPOINTS
def test_json_with_a_charset_is_read(server: Running, http: httpx.Client, path: str) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    body = json.dumps(VALID[path])
    assert http.post(path, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/docs", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/%7Bpath%7D{0}", 404),
    ],
)
def test_unknown_paths_and_methods(
    server: Running, http: httpx.Client, method: str, path: str, status: int
) -> None:
    response = http.request(method, path)
    error_of(response, status)
    assert ("allow" in response.headers) == (status == 405)


def test_the_engine_fails_before_the_answer(server: Running, client: openai.OpenAI) -> None:
    failure = Delta(finish_reason="error", error="The model produced NaN.")
    server.engine.script = lambda request: [says("Hello")[0], failure]
    with pytest.raises(openai.InternalServerError, match="The model produced NaN."):
        chat(client)


@ENDPOINTS
def test_the_engine_fails_in_a_stream(server: Running, http: httpx.Client, path: str) -> None:
    failure = Delta(finish_reason="error", error="The model produced NaN.")
    server.engine.script = lambda request: [says("Hello")[0], failure]
    response = http.post(path, json=VALID[path] | {"stream": True})
    events = [event for event in response.text.split("\n\n") if event]
    assert set(json.loads(events[-1].removeprefix("data: "))) == {"error"}
    assert "[DONE]" not in response.text and '"finish_reason":"' not in response.text


def test_openai_python_sees_the_failure_of_a_stream(server: Running, client: openai.OpenAI) -> None:
    failure = Delta(finish_reason="error", error="The model produced NaN.")
    server.engine.script = lambda request: [says("Hello")[0], failure]
    with pytest.raises(openai.APIError, match="NaN") as caught:
        list(chat(client, stream=True))
    assert caught.value.code == "engine_error"


def test_a_defect_is_a_500_that_tells_nothing(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> int:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.engine, "submit", broken)
    for body in (VALID[CHAT], VALID[CHAT] | {"stream": True}):
        response = http.post(CHAT, json=body)
        error = error_of(response, 500)
        assert error["type"] == "server_error" and "secret" not in response.text
        assert response.headers["x-request-id"]
    eventually(lambda: not server.service.running)


def test_a_defect_in_a_stream_is_seen(server: Running, http: httpx.Client) -> None:
    defect: Any = 5
    server.engine.script = lambda request: [Delta((1,), defect)]
    response = http.post(CHAT, json=VALID[CHAT] | {"stream": True})
    last = [event for event in response.text.split("\n\n") if event][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"


def test_an_unhealthy_engine_is_reported_and_can_recover(
    server: Running, http: httpx.Client
) -> None:
    assert http.get("/health").status_code == 200
    server.engine.stats_now = replace(server.engine.stats_now, healthy=False)
    error_of(http.get("/health"), 503)
    assert http.post(CHAT, json=VALID[CHAT]).status_code == 200


def test_an_engine_that_drains_on_its_own(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draining(*arguments: Any, **options: Any) -> int:
        raise EngineDraining("The server is shutting down; send the request again later.")

    monkeypatch.setattr(server.engine, "submit", draining)
    response = http.post(CHAT, json=VALID[CHAT])
    error_of(response, 503)
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_answer_has_at_least_one_token(http: httpx.Client, name: str) -> None:
    error_of(http.post(CHAT, json=VALID[CHAT] | {name: 0}), 400)
