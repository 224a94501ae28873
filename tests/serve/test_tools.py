"""tool_choice: what the model is shown, what is forced, and what comes back."""

import json
import threading
from typing import Any

import httpx
import openai
import pytest

from tests.serve.conversation import CALL, HI, THOUGHT, TIME, WEATHER, chat, folded
from tests.serve.fake_engine import TOKENIZER, Running, says
from tests.serve.structured.following import follows

NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
CLOSED = "Hi./nothink<|assistant|>\n<think></think>"
REST = CALL.removeprefix("<tool_call>get_weather\n")


def calls_of(message: Any) -> list[tuple[str, Any]]:
    calls = message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


BONN = ("get_weather", {"city": "Bonn", "days": 3})


def test_auto_offers_and_parses_tools(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("\n<think>Call.</think>\nOne moment.\n" + CALL)
    choice = chat(client, tools=[WEATHER, TIME]).choices[0]
    assert calls_of(choice.message) == [BONN]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.id.startswith("call_")
    prompt = server.engine.requests[0].prompt
    assert json.dumps(WEATHER) in prompt and json.dumps(TIME) in prompt


def test_none_neither_offers_nor_parses(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(CALL)
    choice = chat(client, tools=[WEATHER], tool_choice="none").choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    assert "get_weather" not in server.engine.requests[0].prompt


def test_an_undeclared_tool_is_text(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(CALL)
    choice = chat(client, tools=[TIME]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_named_writes_the_beginning_of_the_call(
    server: Running, client: openai.OpenAI, stream: bool
) -> None:
    server.engine.script = lambda request: says(REST)
    answer = chat(client, tools=[WEATHER, TIME], tool_choice=NAMED, stream=stream)
    if stream:
        parts = folded(list(answer))
        name, arguments = parts["calls"][0]
        assert [(name, json.loads(arguments))] == [BONN] and parts["finish"] == ["tool_calls"]
    else:
        assert calls_of(answer.choices[0].message) == [BONN]
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
    prompt = server.engine.requests[0].prompt
    assert prompt.endswith(CLOSED + "\n<tool_call>get_weather\n")
    call = TOKENIZER.encode("<tool_call>get_weather\n")
    assert server.engine.requests[0].prompt_ids[-len(call) :] == call
    grammar = server.engine.requests[0].params.grammar
    assert follows(grammar, REST) and not follows(grammar, REST + "\n" + CALL)
    assert not follows(grammar, "I would rather not.") and not follows(grammar, "")


def test_required_with_one_tool_is_like_naming_it(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(REST)
    answer = chat(client, tools=[WEATHER], tool_choice="required")
    assert calls_of(answer.choices[0].message) == [BONN]
    (request,) = server.engine.requests
    opening = "\n<tool_call>get_weather\n"
    assert request.prompt.endswith(CLOSED + opening)
    # The opening is the server's, not the conversation's, whose tokens /tokenize tells as well.
    opened = len(TOKENIZER.encode(opening))
    assert answer.usage.prompt_tokens == len(request.prompt_ids) - opened


@pytest.mark.parametrize(
    "asking",
    [
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"chat_template_kwargs": {"thinking": True}},
        {"thinking": {"type": "enabled"}},
    ],
)
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_who_asks_to_think_thinks_before_a_forced_call(
    server: Running, client: openai.OpenAI, asking: Any, choice: Any
) -> None:
    server.engine.script = lambda request: says(f"Rain?</think>\n{CALL}")
    answer = chat(client, tools=[WEATHER], tool_choice=choice, extra_body=asking)
    message = answer.choices[0].message
    assert calls_of(message) == [BONN] and message.content is None
    assert message.reasoning_content == "Rain?"
    (request,) = server.engine.requests
    assert request.prompt.endswith("<|assistant|>\n<think>")
    grammar = request.params.grammar
    assert follows(grammar, f"Rain?</think>\n{CALL}")
    for wrong in (CALL, f"Rain?</think>\nYes.\n{CALL}", f"\n{REST}", "Rain?</think>\n"):
        assert not follows(grammar, wrong)


OTHERS: Any = [{"type": "function", "function": {"name": n}} for n in ("get", "add")]


@pytest.mark.parametrize("parallel", [None, True, False])
def test_required_lets_the_model_choose_among_the_tools(
    server: Running, client: openai.OpenAI, parallel: bool | None
) -> None:
    rest = "get_time\n</tool_call>"
    server.engine.script = lambda request: says(rest)
    options = {} if parallel is None else {"parallel_tool_calls": parallel}
    answer = chat(client, tools=[WEATHER, TIME, *OTHERS], tool_choice="required", n=2, **options)
    assert [calls_of(choice.message) for choice in answer.choices] == [[("get_time", {})]] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["tool_calls"] * 2
    assert all(r.prompt.endswith(CLOSED + "\n<tool_call>") for r in server.engine.requests)
    grammar = server.engine.requests[0].params.grammar
    for name in ("get_weather", "get_time", "get", "add"):
        assert follows(grammar, f"{name}\n</tool_call>")
    for wrong in ("get_\n</tool_call>", "get_weather</tool_call>", "nobody\n</tool_call>", ""):
        assert not follows(grammar, wrong)
    assert follows(grammar, f"{rest}\n<tool_call>add\n</tool_call>") is (parallel is not False)


def test_a_call_cut_off_by_length_says_so(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(CALL[:80], reason="length")
    choice = chat(client, tools=[WEATHER], max_tokens=5).choices[0]
    assert choice.finish_reason == "length"
    assert calls_of(choice.message)[0][0] == "get_weather"


@pytest.mark.parametrize("options", [{"parallel_tool_calls": False}, {"tool_choice": NAMED}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [1, 1000])
def test_only_one_call(
    server: Running, client: openai.OpenAI, options: Any, stream: bool, size: int
) -> None:
    text = CALL + "\n" + CALL + "\nDone."
    start = 0 if "parallel_tool_calls" in options else len(CALL) - len(REST)
    # Without the last delta, the request only ends if the server ends it.
    server.engine.script = lambda request: says(text[start:], size=size)[:-1]
    answer = chat(client, tools=[WEATHER], stream=stream, **options)
    if stream:
        parts = folded(list(answer))
        assert len(parts["calls"]) == 1 and parts["finish"] == ["tool_calls"]
        assert parts["content"] == ""
    else:
        assert calls_of(answer.choices[0].message) == [BONN]
        assert answer.choices[0].finish_reason == "tool_calls"
    assert server.engine.requests[0].cancelled.is_set()


def test_a_choice_that_was_ended_early_stays_ended(server: Running, client: openai.OpenAI) -> None:
    """What the engine still delivers of it is dropped while another choice goes on."""
    server.engine.script = lambda request: []

    def feed() -> None:
        first, second = server.engine.wait_for(2)
        for delta in says(CALL + "\nand " + CALL):
            first.send(delta)
        for delta in says("Hello."):
            second.send(delta)

    feeder = threading.Thread(target=feed)
    feeder.start()
    chunks = list(chat(client, tools=[WEATHER], parallel_tool_calls=False, n=2, stream=True))
    feeder.join()
    ended = folded(chunks, 0)
    assert len(ended["calls"]) == 1 and ended["finish"] == ["tool_calls"]
    assert ended["content"] == "" and folded(chunks, 1)["content"] == "Hello."


def test_two_calls(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(CALL + "\n<tool_call>get_time\n</tool_call>")
    message = chat(client, tools=[WEATHER, TIME]).choices[0].message
    assert calls_of(message) == [BONN, ("get_time", {})]
    assert len({call.id for call in message.tool_calls}) == 2


def test_a_tool_choice_needs_no_call_in_auto(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says(THOUGHT)
    choice = chat(client, tools=[WEATHER], tool_choice="auto").choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hello!", "stop")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tool_choice": {"type": "function", "function": {"name": "nobody"}}, "tools": [WEATHER]},
        {"tool_choice": "required"},
        {"tool_choice": "required", "tools": []},
        {"tool_choice": "any", "tools": [WEATHER]},
        {"tool_choice": {"type": "function"}, "tools": [WEATHER]},
        {"tool_choice": 5, "tools": [WEATHER]},
        {"tools": "get_weather"},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "web_search", "function": {"name": "x"}}]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "function", "function": {"name": "a<b"}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
        {"tools": [WEATHER] * 513},
    ],
)
def test_wrong_tools_are_refused(server: Running, http: httpx.Client, wrong: Any) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HI} | wrong)
    error = response.json()["error"]
    assert response.status_code == 400 and "tool" in error["message"]
    assert server.engine.requests == []
