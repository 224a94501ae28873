"""The Messages API as anthropic's client sees it; its types are the specification."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from msgspec.structs import replace
from pydantic import TypeAdapter

from glm_portable.engine.engine import EngineDraining
from glm_portable.engine.types import Delta
from tests.serve.conversation import CALL
from tests.serve.fake_engine import WAIT_S, Running, fake_server, says

PATH = "/v1/messages"
HI: list[Any] = [{"role": "user", "content": "Hi."}]
BODY: dict[str, Any] = {"model": "pocket", "max_tokens": 100, "messages": HI}
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
    "cache_control": {"type": "ephemeral"},
}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
TEXT = f"\n<think>A greeting.</think>\nHello!\n{CALL}"
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture(scope="module")
def shared_claude(shared_server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=shared_server.url, api_key="x", max_retries=0, timeout=WAIT_S
    ) as client:
        yield client


@pytest.fixture
def claude(server: Running, shared_claude: anthropic.Anthropic) -> anthropic.Anthropic:
    return shared_claude


def post(http: httpx.Client, **fields: Any) -> Any:
    response = http.post(PATH, json=BODY | fields)
    assert response.status_code == 200, response.text
    Message.model_validate(response.json(), strict=True)
    return response.json()


def events(http: httpx.Client, **fields: Any) -> list[Any]:
    """The events of a stream, each with its name and of the client's type."""
    response = http.post(PATH, json=BODY | fields | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        if found[-1]["type"] not in ("ping", "error"):
            EVENT.validate_python(found[-1], strict=True)
    return found


def test_a_whole_answer(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says(TEXT)
    answer = post(http, tools=[WEATHER], thinking=THINKING)
    assert answer["content"] == [
        {"type": "thinking", "thinking": "A greeting.", "signature": ""},
        {"type": "text", "text": "Hello!", "citations": None},
        {"type": "tool_use", "id": answer["content"][2]["id"], "name": "get_weather",
         "input": {"city": "Bonn", "days": 3}},
    ]  # fmt: skip
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("tool_use", None)
    usage = answer["usage"]
    assert usage["input_tokens"] == len(server.engine.requests[0].prompt_ids)
    assert usage["output_tokens"] == len(says(TEXT))
    assert 0 < usage["output_tokens_details"]["thinking_tokens"] < usage["output_tokens"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_events_of_a_stream(server: Running, http: httpx.Client, size: int) -> None:
    server.engine.script = lambda request: says(TEXT, size=size)
    found = events(http, tools=[WEATHER], thinking=THINKING)
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert found[0]["message"]["usage"]["output_tokens"] <= size
    index = -1
    for event in found[2:-2]:
        index += event["type"] == "content_block_start"
        assert event["index"] == index
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["thinking", "text", "tool_use"]
    assert starts[2]["input"] == {}
    assert kinds.count("content_block_stop") == 3
    thinking_ends = kinds.index("content_block_stop")  # signed just before
    signed = {"type": "signature_delta", "signature": ""}
    assert found[thinking_ends - 1]["delta"] == signed
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == sum(
        len(delta.token_ids) for delta in says(TEXT, size=size)
    )


@pytest.mark.parametrize("text", [TEXT, "Hello.", f"One {CALL} two", "", CALL + CALL])
def test_the_client_puts_a_stream_together_as_the_whole(
    server: Running, claude: anthropic.Anthropic, text: str
) -> None:
    server.engine.script = lambda request: says(text)
    options: Any = BODY | {"tools": [WEATHER], "thinking": THINKING}
    whole = claude.messages.create(**options)
    with claude.messages.stream(**options) as stream:
        pieces = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert pieces == "".join(block.text for block in whole.content if block.type == "text")

    def shown(message: Any) -> Any:
        return [block.model_dump(exclude={"id", "parsed_output"}) for block in message.content]

    assert shown(final) == shown(whole)
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)
    assert whole._request_id


@pytest.mark.parametrize("value", [r'["\ud800"]', "1e400", "[" * 253 + "]" * 253])
def test_the_input_of_a_call_is_json_whatever_the_model_writes(
    server: Running, http: httpx.Client, value: str
) -> None:
    server.engine.script = lambda request: says(CALL.replace("3", value))
    answer = post(http, tools=[WEATHER])
    assert answer["content"][0]["input"] == {"city": "Bonn", "days": value}


@pytest.mark.parametrize(
    ("thinking", "on"),
    [
        ({}, False),  # as in Anthropic's API
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": THINKING}, True),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"thinking": True}}, True),
        ({"chat_template_kwargs": {"thinking": False}, "thinking": THINKING}, False),
        ({"chat_template_kwargs": {"enable_thinking": None}}, False),
    ],
)
def test_thinking_is_switched(
    server: Running, http: httpx.Client, thinking: dict[str, Any], on: bool
) -> None:
    post(http, **thinking)
    assert server.engine.requests[0].prompt.endswith("<think></think>") != on


@pytest.mark.parametrize(
    ("delta", "ending"),
    [
        (Delta((5,), "x", finish_reason="stop", stop_reason="END"), ("stop_sequence", "END")),
        (Delta((5,), "x", finish_reason="length"), ("max_tokens", None)),
        (Delta((5,), "x", finish_reason="stop"), ("end_turn", None)),
    ],
)
def test_why_it_ended(server: Running, http: httpx.Client, delta: Delta, ending: Any) -> None:
    server.engine.script = lambda request: [delta]
    answer = post(http, stop_sequences=["END"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ending
    streamed = events(http, stop_sequences="END")[-2]["delta"]
    assert (streamed["stop_reason"], streamed["stop_sequence"]) == ending
    assert all(request.params.stop == ("END",) for request in server.engine.requests)


def test_sampling_fields(server: Running, http: httpx.Client) -> None:
    post(http, temperature=0.5, top_p=0.9, top_k=7, priority=3, cache_salt="mine")
    params = server.engine.requests[0].params
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 7)
    assert params.max_tokens == 100
    request = server.engine.requests[0]
    assert (request.priority, request.cache_salt) == (3, "mine")


@pytest.mark.parametrize(
    ("choice", "offered", "forced"),
    [
        (None, True, False),
        ({"type": "auto"}, True, False),
        ({"type": "any"}, True, True),
        ({"type": "tool", "name": "get_weather"}, True, True),
        ({"type": "none"}, False, False),
    ],
)
def test_tool_choice(
    server: Running, http: httpx.Client, choice: Any, offered: bool, forced: bool
) -> None:
    arguments = "<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n</tool_call>"
    server.engine.script = lambda request: says(arguments if forced else "Hello.")
    answer = post(http, tools=[WEATHER], tool_choice=choice)
    assert (answer["stop_reason"] == "tool_use") == forced
    assert ("get_weather" in server.engine.requests[-1].prompt) == offered
    if forced:
        assert answer["content"][0]["input"] == {"city": "Bonn"}


def test_one_call_at_a_time(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says(CALL + CALL)
    both = post(http, tools=[WEATHER])
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    one = post(http, tools=[WEATHER], tool_choice=choice)
    assert [len(answer["content"]) for answer in (both, one)] == [2, 1]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"system": "Be brief."},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}},
        {"thinking": THINKING},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"messages": [*HI, {"role": "assistant", "content": "Hello."}, *HI]},
    ],
)
def test_counted_tokens_are_those_of_the_answer(
    server: Running, claude: anthropic.Anthropic, http: httpx.Client, extra: dict[str, Any]
) -> None:
    fields: Any = {"model": "pocket", "messages": HI} | extra
    counted = claude.messages.count_tokens(**fields)
    MessageTokensCount.model_validate(counted.model_dump(), strict=True)
    assert server.engine.requests == []
    assert counted.input_tokens == post(http, **extra)["usage"]["input_tokens"]


def test_fields_that_are_not_heeded(server: Running, claude: anthropic.Anthropic) -> None:
    answer = claude.beta.messages.create(
        model="pocket",
        max_tokens=10,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi", "citations": None}]}],
        metadata={"user_id": "me"},
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        output_config={"effort": "low"},
        service_tier="auto",
        betas=["context-management-2025-06-27", "interleaved-thinking-2025-05-14"],
        extra_body={"unknown": {"a": [1]}},
        extra_headers={"anthropic-version": "2023-06-01"},
    )
    assert answer.content[0].type == "text"
    assert "Be brief." in server.engine.requests[0].prompt


def error_of(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == response.headers["request-id"] != ""
    return str(body["error"]["message"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0] is of type 'image', but this model reads text only",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"mcp_servers": [{"type": "url", "name": "x"}]}, "mcp_servers is not supported"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].function.name holds"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "'x'"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"temperature": 3}, "temperature"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
            "output_config.format",
        ),
        ({"messages": [{"role": "user", "content": "long " * 600}]}, "maximum context length"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: Running, http: httpx.Client, fields: dict[str, Any], words: str
) -> None:
    body = {name: value for name, value in (BODY | fields).items() if value is not None}
    message = error_of(http.post(PATH, json=body), 400, "invalid_request_error")
    assert words in message
    assert server.engine.requests == []


def test_other_errors_have_their_shape(http: httpx.Client) -> None:
    other = http.post(PATH, json=BODY | {"model": "other"})
    error_of(other, 404, "not_found_error")
    error_of(http.get(PATH), 405, "invalid_request_error")
    error_of(http.post(f"{PATH}/batches", json={}), 404, "not_found_error")
    error_of(http.post(PATH, content="{}"), 415, "invalid_request_error")
    counted = http.post(f"{PATH}/count_tokens", json={"messages": HI, "model": "other"})
    error_of(counted, 404, "not_found_error")
    assert http.post("/v1/chat/completions", json={}).json().keys() == {"error"}


def test_errors_of_the_server_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(api_keys=("secret",)) as running:
        error_of(httpx.post(running.url + PATH, json=BODY), 401, "authentication_error")
        known = {"x-api-key": "secret"}
        running.engine.script = lambda request: [Delta(finish_reason="error", error="It broke.")]
        broken = httpx.post(running.url + PATH, json=BODY, headers=known)
        assert error_of(broken, 500, "api_error") == "It broke."

        def refuse(*arguments: Any, **options: Any) -> Any:
            raise EngineDraining("Later.")

        monkeypatch.setattr(running.engine, "submit", refuse)
        draining = httpx.post(running.url + PATH, json=BODY, headers=known)
        assert error_of(draining, 503, "overloaded_error") == "Later."
        assert draining.headers["retry-after"] == "1"


@pytest.mark.parametrize("after", [0, 2])
def test_a_stream_that_fails_ends_in_an_error(
    server: Running, http: httpx.Client, claude: anthropic.Anthropic, after: int
) -> None:
    failure = Delta(finish_reason="error", error="It broke.")
    server.engine.script = lambda request: [*says("Hello there.")[:after], failure]
    found = events(http)
    assert found[-1]["error"] == {"type": "api_error", "message": "It broke."}
    assert not any(event["type"] == "message_stop" for event in found)
    with pytest.raises(anthropic.APIStatusError, match="It broke"):
        list(claude.messages.create(**BODY, stream=True))


def test_cache_hits_are_told_to_those_who_mark_a_prefix(
    server: Running, http: httpx.Client
) -> None:
    def cached(request: Any) -> list[Delta]:
        first, *rest = says("Hello.")
        return [replace(first, num_cached_tokens=5), *rest]

    server.engine.script = cached
    plain = post(http)["usage"]
    marked_text = {"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}
    marked = post(http, messages=[{"role": "user", "content": [marked_text]}])["usage"]
    assert (plain["cache_read_input_tokens"], marked["cache_read_input_tokens"]) == (0, 5)
    assert marked["input_tokens"] == plain["input_tokens"] - 5
    start = events(http, cache_control={"type": "ephemeral"})[0]["message"]["usage"]
    assert (start["cache_read_input_tokens"], start["input_tokens"]) == (5, marked["input_tokens"])
