"""Formats in requests: the prompt, what is enforced on the answer, and who waits for whom."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pydantic
import pytest

from glm_portable.engine.types import Delta
from glm_portable.serve.structured import compiler as compilers
from glm_portable.serve.structured import kept as memory
from glm_portable.serve.structured.compiler import Compiler, Wanted
from tests.serve.conversation import CALL, HI, TIME, WEATHER, chat
from tests.serve.fake_engine import TOKENIZER, WAIT_S, Running, eventually, says
from tests.serve.raw import start_request
from tests.serve.structured.following import follows

FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "sum",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"sum": {"type": "integer"}},
            "required": ["sum"],
            "additionalProperties": False,
        },
    },
}
QUIET: Any = {"chat_template_kwargs": {"enable_thinking": False}}
ANSWER = '{"sum": 42}'
THOUGHT = "17 and 25 <tool_call> is 42.</think>\n"
FUNCTION: Any = WEATHER["function"]
STRICT = {"type": "function", "function": {**FUNCTION, "strict": True}}


def grammar_of(server: Running) -> Any:
    return server.engine.requests[-1].params.grammar


def test_without_thinking_the_answer_is_the_format(server: Running, client: openai.OpenAI) -> None:
    server.engine.script = lambda request: says("\n" + ANSWER)
    choice = chat(client, response_format=FORMAT, extra_body=QUIET).choices[0]
    assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
    for text in (ANSWER, "\n" + ANSWER):
        assert follows(grammar_of(server), text)
    for text in ("", "\n", f"Sure: {ANSWER}", ANSWER + "\n", f"<think></think>{ANSWER}"):
        assert not follows(grammar_of(server), text)


@pytest.mark.parametrize("stream", [False, True])
def test_with_thinking_the_format_comes_after_it(
    server: Running, client: openai.OpenAI, stream: bool
) -> None:
    server.engine.script = lambda request: says(THOUGHT + ANSWER)
    if stream:
        chunks = list(chat(client, response_format=FORMAT, stream=True))
        deltas = [c.choices[0].delta for c in chunks if c.choices]
        content = "".join(d.content or "" for d in deltas)
        thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    else:
        message = chat(client, response_format=FORMAT).choices[0].message
        content, thought = message.content, message.reasoning_content
    assert (content, thought) == (ANSWER, "17 and 25 <tool_call> is 42.")
    assert server.engine.requests[0].prompt.endswith("<|assistant|>\n<think>")
    grammar = grammar_of(server)
    assert follows(grammar, THOUGHT + ANSWER) and follows(grammar, "</think>" + ANSWER)
    for text in (
        ANSWER,
        "thinking",
        "thinking</think>",
        "</think>yes",
        f"</think>{ANSWER}</think>",
    ):
        assert not follows(grammar, text)


def test_a_format_beside_tools_is_either(server: Running, client: openai.OpenAI) -> None:
    chat(client, response_format=FORMAT, tools=[STRICT, TIME], extra_body=QUIET)
    grammar = grammar_of(server)
    assert follows(grammar, "\n" + ANSWER) and follows(grammar, ANSWER)
    assert follows(grammar, "\n" + CALL)
    assert follows(grammar, f"\n{CALL}\n<tool_call>get_time\n</tool_call>")
    for text in ("Hello.", f"\n{CALL}\n{ANSWER}", "\n<tool_call>get_weather\n</tool_call>"):
        assert not follows(grammar, text)
    chat(client, response_format=FORMAT, tools=[TIME], tool_choice="none", extra_body=QUIET)
    assert not follows(grammar_of(server), "\n<tool_call>get_time\n</tool_call>")
    chat(client, response_format=FORMAT, tools=[TIME], tool_choice="required", extra_body=QUIET)
    assert not follows(grammar_of(server), ANSWER)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("parallel", [True, False])
def test_auto_with_a_strict_tool_leaves_the_text_free(
    server: Running, client: openai.OpenAI, thinking: bool, parallel: bool
) -> None:
    extra: Any = {"chat_template_kwargs": {"enable_thinking": thinking}}
    chat(client, tools=[STRICT, TIME], parallel_tool_calls=parallel, extra_body=extra)
    start = "Hm.</think>" if thinking else ""
    grammar = grammar_of(server)
    for text in ("", "Hello, <tool> you!", f"One moment.\n{CALL}", CALL):
        assert follows(grammar, start + text)
    two = f"{CALL}\n and \n<tool_call>get_time\n</tool_call>"
    assert follows(grammar, start + two) is parallel
    wrong = CALL.replace("city", "town")
    for text in (
        wrong,
        "<tool_call>nobody\n</tool_call>",
        CALL[:-3],
        "<tool_call>get_weather\n</tool_call>",
    ):
        assert not follows(grammar, start + text)
    if thinking:
        assert not follows(grammar, f"Hm. {CALL}</think>")


def test_tools_that_are_not_strict_are_not_enforced_in_auto(
    server: Running, client: openai.OpenAI
) -> None:
    chat(client, tools=[WEATHER, TIME])
    assert grammar_of(server) is None
    assert server.engine.requests[0].prompt.endswith("<|assistant|>")


def test_a_completion_is_the_format_from_its_first_token(
    server: Running, client: openai.OpenAI
) -> None:
    for extra in ({"guided_choice": ["yes", "no"]}, {"regex": "yes|no"}):
        client.completions.create(model="pocket", prompt=["a", "b"], n=2, extra_body=extra)
        grammars = [request.params.grammar for request in server.engine.requests[-4:]]
        assert len(set(map(id, grammars))) == 1
        assert follows(grammars[0], "yes") and not follows(grammars[0], "\nyes")


class Sum(pydantic.BaseModel):
    """What two numbers add up to."""

    sum: int
    parts: list[int]


def test_openai_parses_into_a_pydantic_model(server: Running, client: openai.OpenAI) -> None:
    answer = '{"sum": 42, "parts": [17, 25]}'
    server.engine.script = lambda request: says(f"Easy.</think>\n{answer}")
    found = client.chat.completions.parse(model="pocket", messages=HI, response_format=Sum)
    assert found.choices[0].message.parsed == Sum(sum=42, parts=[17, 25])
    assert follows(grammar_of(server), f"</think>{answer}")
    assert not follows(grammar_of(server), '</think>{"sum": 42}')


def test_openai_parses_a_strict_tools_arguments(server: Running, client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Sum)
    call = (
        "<tool_call>Sum\n<arg_key>sum</arg_key>\n<arg_value>42</arg_value>\n"
        "<arg_key>parts</arg_key>\n<arg_value>[17, 25]</arg_value>\n</tool_call>"
    )
    server.engine.script = lambda request: says(f"Easy.</think>\n{call}")
    found = client.chat.completions.parse(model="pocket", messages=HI, tools=[tool])
    [parsed] = found.choices[0].message.tool_calls or []
    assert parsed.function.parsed_arguments == Sum(sum=42, parts=[17, 25])
    assert follows(grammar_of(server), f"Easy.</think>\n{call}")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": "json"}, "response_format", "should be an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format.json_schema.schema",
            "uses not, which is not supported",
        ),
        ({"guided_json": {"minLength": 1e9}}, "guided_json", "guided_json.minLength should be"),
        ({"guided_regex": "(a{1000}){1000}"}, "guided_regex", "repeats more than"),
        ({"guided_regex": "("}, "guided_regex", "guided_regex holds a regular expression"),
        ({"guided_grammar": 'root ::= "'}, "guided_grammar", "is not GBNF that can be read"),
        ({"guided_grammar": "start: missing"}, "guided_grammar", "cannot be turned into a grammar"),
        ({"guided_choice": "yes"}, "guided_choice", "should be a list"),
        ({"guided_regex": "a", "ebnf": "b"}, "ebnf", "give one of them"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_cannot_be_enforced_is_refused(
    server: Running, http: httpx.Client, fields: Any, param: str, said: str, path: str
) -> None:
    body = {"messages": HI} if "chat" in path else {"prompt": "a"}
    response = http.post(path, json=body | fields)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert said in error["message"] and error["param"] == param
    assert server.engine.requests == []


def test_a_strict_tools_schema_is_refused_with_its_place(
    server: Running, http: httpx.Client
) -> None:
    function = {"name": "f", "strict": True, "parameters": {"properties": {"a": {"if": {}}}}}
    tools = [TIME, {"type": "function", "function": function}]
    response = http.post("/v1/chat/completions", json={"messages": HI, "tools": tools})
    assert response.status_code == 400
    assert (
        "tools[1].function.parameters.properties.a uses if" in response.json()["error"]["message"]
    )


class Held:
    """A probe that checks nothing until it is released."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()

    def check(self, text: str) -> None:
        self.entered.set()
        assert self.released.wait(2 * WAIT_S)  # longer than any test waits for something else


@pytest.fixture
def held(server: Running) -> Any:
    """The server's compiler with a held probe, and one grammar compiled before that."""
    compiler = server.service.grammars = Compiler(TOKENIZER)
    asyncio.run(compiler.compile(lambda: Wanted('start: "known"', "field")))
    probe = Held()
    vars(compiler)["_probe"] = probe
    yield probe
    probe.released.set()
    server.service.grammars = Compiler(TOKENIZER)


def test_while_a_grammar_compiles_everybody_else_is_served(
    server: Running, client: openai.OpenAI, held: Held
) -> None:
    server.engine.script = lambda request: says("known")
    running = []

    def slow() -> Any:
        return chat(client, extra_body={"guided_regex": "new", **QUIET})

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(slow)
        assert held.entered.wait(WAIT_S)
        for chunk in chat(client, stream=True):
            running.append(chunk)
        known = {"guided_grammar": 'start: "known"'}
        client.completions.create(model="pocket", prompt="a", extra_body=known)
        assert not future.done() and len(server.engine.requests) == 2 and len(running) > 2
        held.released.set()
        assert future.result(WAIT_S).choices[0].message.content == "known"


def test_a_client_that_leaves_while_its_grammar_compiles(
    server: Running, client: openai.OpenAI, held: Held
) -> None:
    connection = start_request(server.url, guided_regex="new")
    assert held.entered.wait(WAIT_S)
    connection.close()
    eventually(lambda: server.service.grammars._waiting == 0)  # it has noticed
    held.released.set()
    chat(client)
    assert len(server.engine.requests) == 1  # the one just now


def test_too_many_waiting_grammars_are_turned_away(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "MAX_WAITING", 0)
    response = http.post("/v1/chat/completions", json={"messages": HI, "guided_regex": "a"})
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert http.post("/v1/chat/completions", json={"messages": HI}).status_code == 200


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_KEPT", 2)
    compiler, tried = Compiler(TOKENIZER), []
    monkeypatch.setattr(compiler, "_probe", Held())
    monkeypatch.setattr(Held, "check", lambda self, text: tried.append(text))

    def ask(letter: str) -> Any:
        return asyncio.run(compiler.compile(lambda: Wanted(f'start: "{letter}"', "field")))

    first = ask("a")
    assert ask("a") is first
    ask("b")
    assert ask("a") is first  # and so b is the one used least recently
    ask("c")
    assert ask("a") is first
    ask("b")
    assert [text[8] for text in tried] == ["a", "b", "c", "b"]
    monkeypatch.setattr(memory, "MAX_KEPT_CHARACTERS", 5)
    ask("d")
    assert len(compiler._kept) == compiler._kept._characters == 0


def test_an_error_in_the_middle_ends_the_request(server: Running, http: httpx.Client) -> None:
    error = Delta(finish_reason="error", error="The format asked for became too complex.")
    server.engine.script = lambda request: [*says("ab")[:1], error]
    response = http.post("/v1/chat/completions", json={"messages": HI, "guided_regex": "ab"})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The format asked for became too complex."
