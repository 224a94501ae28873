"""The Responses API as openai's client sees it; its types are the specification."""

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest
from msgspec.structs import replace
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from glm_portable.engine.types import Delta
from tests.serve.conversation import CALL
from tests.serve.conversation import WEATHER as CHAT_WEATHER
from tests.serve.fake_engine import Running, says

PATH = "/v1/responses"
BODY: dict[str, Any] = {"model": "pocket", "input": "Hi."}
FUNCTION: Any = CHAT_WEATHER["function"]
WEATHER: Any = {"type": "function", "strict": None, **FUNCTION}
TEXT = f"\n<think>A greeting.</think>\nHello!\n{CALL}"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def post(http: httpx.Client, **fields: Any) -> Any:
    response = http.post(PATH, json=BODY | fields)
    assert response.status_code == 200, response.text
    Response.model_validate(response.json(), strict=True)
    return response.json()


def events(http: httpx.Client, **fields: Any) -> list[Any]:
    """The events of a stream, each with its name, its number and of the client's type."""
    response = http.post(PATH, json=BODY | fields | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for number, block in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
        EVENT.validate_python(found[-1], strict=True)
    return found


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        hidden = ("id", "call_id", "created_at", "completed_at")
        return {key: without_ids(item) for key, item in value.items() if key not in hidden}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def test_a_whole_answer(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says(TEXT)
    answer = post(http, tools=[WEATHER])
    thinking, message, call = answer["output"]
    assert thinking["content"] == [{"type": "reasoning_text", "text": "A greeting."}]
    assert (thinking["type"], thinking["summary"]) == ("reasoning", [])
    assert message["content"] == [
        {"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}
    ]
    assert (call["name"], json.loads(call["arguments"])) == (
        "get_weather",
        {"city": "Bonn", "days": 3},
    )
    assert len({item["id"] for item in answer["output"]} | {call["call_id"]}) == 4
    assert {item["status"] for item in answer["output"]} == {answer["status"]} == {"completed"}
    usage = answer["usage"]
    assert usage["input_tokens"] == len(server.engine.requests[0].prompt_ids)
    assert usage["output_tokens"] == len(says(TEXT))
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}


ORDER = [
    *("response.created", "response.in_progress"),
    *("response.output_item.added", "response.content_part.added"),
    *("response.reasoning_text.delta", "response.reasoning_text.done"),
    *("response.content_part.done", "response.output_item.done"),
    *("response.output_item.added", "response.content_part.added"),
    *("response.output_text.delta", "response.output_text.done"),
    *("response.content_part.done", "response.output_item.done"),
    "response.output_item.added",
    *("response.function_call_arguments.delta", "response.function_call_arguments.done"),
    *("response.output_item.done", "response.completed"),
]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_events_of_a_stream(server: Running, http: httpx.Client, size: int) -> None:
    server.engine.script = lambda request: says(TEXT, size=size)
    found = events(http, tools=[WEATHER])
    kinds = [event["type"] for event in found]
    assert [k for i, k in enumerate(kinds) if i == 0 or k != kinds[i - 1]] == ORDER
    index = -1
    for event in found[2:-1]:
        index += event["type"] == "response.output_item.added"
        assert event["output_index"] == index
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]
    added = [event["item"] for event in found if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    for name in ("reasoning_text", "output_text", "function_call_arguments"):
        pieces = "".join(e["delta"] for e in found if e["type"] == f"response.{name}.delta")
        [end] = [event for event in found if event["type"] == f"response.{name}.done"]
        assert pieces == end.get("text", end.get("arguments")) != ""
    assert {e["response"]["id"] for e in found if "response" in e} == {found[0]["response"]["id"]}


@pytest.mark.parametrize("text", [TEXT, "Hello.", f"One {CALL} two", "", CALL + CALL])
def test_the_client_puts_a_stream_together_as_the_whole(
    server: Running, client: openai.OpenAI, http: httpx.Client, text: str
) -> None:
    server.engine.script = lambda request: says(text)
    options: Any = BODY | {"tools": [WEATHER]}
    whole = client.responses.create(**options)
    with client.responses.stream(**options) as stream:
        pieces = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert pieces == whole.output_text == final.output_text
    last = events(http, tools=[WEATHER])[-1]["response"]
    assert without_ids(last) == without_ids(post(http, tools=[WEATHER]))


def test_it_is_cut_off(server: Running, http: httpx.Client) -> None:
    server.engine.script = lambda request: says("\n<think>Well, ", reason="length")
    answer = post(http, max_output_tokens=5)
    assert server.engine.requests[0].params.max_tokens == 5
    assert answer["status"] == answer["output"][0]["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    last = events(http, max_output_tokens=5)
    assert last[-1]["type"] == "response.incomplete"
    assert last[-2]["item"]["status"] == "incomplete"
    assert without_ids(last[-1]["response"]) == without_ids(answer)


@pytest.mark.parametrize("after", [0, 2])
def test_a_stream_that_fails_says_so(server: Running, http: httpx.Client, after: int) -> None:
    failure = Delta(finish_reason="error", error="It broke.")
    server.engine.script = lambda request: [*says("Hello there.")[:after], failure]
    last = events(http)[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "It broke."}
    whole = http.post(PATH, json=BODY)
    assert (whole.status_code, whole.json()["error"]["message"]) == (500, "It broke.")


def test_the_request_comes_back(http: httpx.Client) -> None:
    fields: dict[str, Any] = {
        "instructions": "Be brief.",
        "tools": [WEATHER],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "max_output_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}},
    }
    extra = {"store": True, "include": ["reasoning.encrypted_content"], "truncation": "auto"}
    answer = post(http, **fields, **extra, user="me", service_tier="auto", prompt_cache_key="k")
    assert {name: answer[name] for name in fields} == fields
    assert answer["store"] is False and answer["truncation"] == "disabled"


def test_sampling_and_thinking(server: Running, http: httpx.Client) -> None:
    own: dict[str, Any] = {"priority": 3, "cache_salt": "mine"}
    post(http, temperature=0.5, top_p=0.9, seed=3, reasoning={"effort": "none"}, **own)
    request = server.engine.requests[0]
    assert (request.priority, request.cache_salt) == (3, "mine")
    assert (request.params.temperature, request.params.top_p, request.params.seed) == (0.5, 0.9, 3)
    assert request.prompt.endswith("<think></think>")
    post(http, reasoning={"effort": "high"})
    assert request.prompt.endswith("<think></think>")
    assert not server.engine.requests[1].prompt.endswith("<think></think>")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_is_enforced(server: Running, http: httpx.Client, choice: Any) -> None:
    arguments = "<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n</tool_call>"
    server.engine.script = lambda request: says(arguments)
    [call] = post(http, tools=[WEATHER], tool_choice=choice)["output"]
    assert json.loads(call["arguments"]) == {"city": "Bonn"}


def test_a_conversation_goes_on(server: Running, client: openai.OpenAI) -> None:
    """Output items of one answer are input items of the next request."""
    server.engine.script = lambda request: says(TEXT)
    first = client.responses.create(**BODY, tools=[WEATHER])
    history: Any = [{"role": "user", "content": "Hi."}, *first.output]
    call = first.output[-1]
    assert call.type == "function_call"
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    server.engine.script = lambda request: says("Sunny.")
    second = client.responses.create(model="pocket", input=history, tools=[WEATHER])
    assert second.output_text == "Sunny."
    prompt = server.engine.requests[1].prompt
    assert "<think>A greeting.</think>\nHello!" in prompt
    assert prompt.index(CALL) < prompt.index("sunny")


class City(pydantic.BaseModel):
    name: str
    millions: float


def test_the_client_parses_an_answer_of_a_format(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says('{"name": "Bonn", "millions": 0.3}')
    off: Any = {"model": "pocket", "reasoning": {"effort": "none"}}
    answer = client.responses.parse(input="Where?", text_format=City, **off)
    assert answer.output_parsed == City(name="Bonn", millions=0.3)
    assert server.engine.requests[0].params.grammar is not None
    with client.responses.stream(input="Where?", text_format=City, **off) as stream:
        assert stream.get_final_response().output_parsed == answer.output_parsed
    plain = client.responses.create(input="Hi", text={"format": {"type": "text"}}, **off)
    assert plain.text and plain.text.format and plain.text.format.type == "text"
    assert server.engine.requests[2].params.grammar is None


def test_cache_hits_are_told(server: Running, http: httpx.Client) -> None:
    def cached(request: Any) -> list[Delta]:
        first, *rest = says("Hello.")
        return [replace(first, num_cached_tokens=5), *rest]

    server.engine.script = cached
    assert post(http)["usage"]["input_tokens_details"]["cached_tokens"] == 5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input should be a string or a list"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference'"),
        ({"input": [{"role": "dog", "content": "x"}]}, "input[0].role is 'dog'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0] is of type 'input_image', but this model reads text only",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "message.output_text.logprobs"),
        ({"tools": [{"type": "web_search"}]}, "'web_search'"),
        ({"tools": [CHAT_WEATHER]}, "name"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "'x'"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema"}}}, "a name and a schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "x"}}}},
            "text.format",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"input": "long " * 600}, "maximum context length"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: Running, http: httpx.Client, fields: dict[str, Any], words: str
) -> None:
    body = {name: value for name, value in (BODY | fields).items() if value is not None}
    response = http.post(PATH, json=body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]
    assert server.engine.requests == []


def test_nothing_is_stored(client: openai.OpenAI, http: httpx.Client) -> None:
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="stores none"):
            call("resp_1")
    assert http.post(f"{PATH}/resp_1/cancel").status_code == 404
    assert http.post(PATH, json=BODY | {"model": "other"}).status_code == 404
