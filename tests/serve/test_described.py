"""/openapi.json allows what the server takes, and nothing else."""

from typing import Any

import httpx
import pytest

from tests.serve.json_schema import allows
from tests.serve.test_openapi import BODIES, schema_of

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT, TOKENIZE = "/v1/messages", "/v1/messages/count_tokens", "/tokenize"
USER = {"role": "user", "content": "Hi"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}
OBJECT: dict[str, Any] = {"type": "object"}


@pytest.fixture(scope="module")
def document(shared_http: httpx.Client) -> Any:
    return shared_http.get("/openapi.json").json()


def agree(document: Any, http: httpx.Client, path: str, body: Any) -> bool:
    """Whether the server takes the body, as its schema says."""
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = schema_of(document, reference["schema"]["$ref"])
    response = http.post(path, json=body)
    assert response.status_code in (200, 400)
    taken = response.status_code == 200
    assert allows(schema, body, document["components"]["schemas"]) == taken, response.text
    return taken


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": None, **fields}]}


def called(**function: Any) -> dict[str, Any]:
    return message(tool_calls=[{"id": "a", "type": "function", "function": function}])


def blocks(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


def items(*items: dict[str, Any]) -> dict[str, Any]:
    return {"input": list(items)}


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", **fields}}


def text_format(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", **fields}}}


FORMATS: list[dict[str, Any]] = [
    {"guided_json": OBJECT}, {"guided_json": True}, {"guided_json": '{"type": "object"}'},
    {"guided_json": ""}, {"guided_regex": ""}, {"guided_choice": []}, {"regex": "a|b"},
    {"guided_choice": ["a"]}, {"ebnf": 'root ::= "a"'}, {"ebnf": None},
    {"response_format": None}, {"response_format": {"type": "text", "json_schema": 5}},
    json_schema(json_schema={"name": "n", "strict": None, "schema": OBJECT}),
    json_schema(json_schema={"name": None, "schema": None}), json_schema(schema=OBJECT),
    json_schema(), {"response_format": {"type": "json_object"}, "guided_json": ""},
    {"response_format": {"type": "text"}, "structured_outputs": {"json": OBJECT}},
    {"structured_outputs": {"json_object": True, "json": None}, "guided_regex": None},
    {"structured_outputs": {"json_object": False, "choice": ["a"]}}, {"structured_outputs": {}},
]  # fmt: skip
NO_FORMATS: list[dict[str, Any]] = [
    {"guided_json": False}, {"guided_json": 1}, {"guided_json": []}, {"guided_regex": []},
    {"guided_regex": "a" * 5000}, {"guided_choice": ""}, {"guided_choice": [""]}, {"ebnf": 0},
    {"guided_choice": ["a", 1]}, {"ebnf": []}, {"response_format": ""}, {"response_format": []},
    {"response_format": {}}, json_schema(json_schema=5), json_schema(json_schema=None),
    json_schema(json_schema={"schema": 5}), json_schema(json_schema={"strict": 1}),
    json_schema(schema=[]), {"structured_outputs": []}, {"structured_outputs": ""},
    {"structured_outputs": {"json_object": 1}}, {"structured_outputs": {"structural_tag": "a"}},
    {"structured_outputs": {"json_object": True, "json": OBJECT}},
    {"guided_json": OBJECT, "regex": "a"},
    {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
    {"stream": True, "prompt_logprobs": 0}, {"suffix": "a"}, {"audio": 0},
]  # fmt: skip
TAKEN: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        called(name="f"), called(name="f", arguments=None), called(name="f", arguments={"a": 1}),
        called(name="f", arguments=""), message(tool_calls=[{"name": "f", "arguments": "{}"}]),
        message(tool_calls=[{"id": 5, "type": "", "function": {"name": "f"}}]),
        message(tool_calls=None, reasoning={"a": 1}, refusal=None), message(reasoning="So."),
        message(content=["a", {"type": "refusal", "refusal": "No."}]),
        {"messages": [{"role": "tool", "content": [{"output": 5}], "tool_call_id": None}]},
        {"thinking": {}}, {"thinking": {"type": "disabled", "clear_thinking": None}},
        {"chat_template_kwargs": {"enable_thinking": None, "reasoning_effort": 5}},
        {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}},
        {"chat_template_kwargs": {"thinking": True}, "reasoning_effort": "none"},
        {"chat_template_kwargs": {"thinking": True}, "thinking": {"type": "disabled"}},
        {"tools": [{"function": {"name": "f", "strict": None, "parameters": None}}]},
        {"tools": TOOLS, "tool_choice": "required"}, {"tools": [], "tool_choice": "auto"},
        {"top_logprobs": 0}, {"top_logprobs": 2, "logprobs": True}, {"seed": 1.0},
        {"stream": True, "prompt_logprobs": None}, {"suffix": "", "functions": [], "audio": None},
        {"min_tokens": 100}, {"min_tokens": 3, "max_tokens": 3}, *FORMATS,
    ],
    COMPLETIONS: [{"prompt": [[5], [6, 7.0]]}, {"min_tokens": 16}, *FORMATS],
    MESSAGES: [
        {"system": None}, {"thinking": {"type": "between_tools"}}, {"tools": [TOOL]},
        {"mcp_servers": None}, {"mcp_servers": []},
        {"tools": [{**TOOL, "strict": None, "type": None, "description": None}]},
        {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": None}},
        {"chat_template_kwargs": {"thinking": True}},
        blocks("user", {"type": "tool_result"}, {"type": "tool_result", "tool_use_id": 5}),
        blocks("assistant", {"type": "thinking", "thinking": "So.", "signature": None}),
        blocks("assistant", {"type": "redacted_thinking"}, {"type": "tool_use", "name": "f"}),
    ],
    RESPONSES: [
        items({"type": "reasoning"}), items({"type": "reasoning", "content": None, "summary": []}),
        items({"type": "function_call", "name": "f", "arguments": "{}"}),
        items({"type": "function_call_output", "output": ""}),
        text_format(name="n", schema=OBJECT), {"text": {"format": {"type": "json_object"}}},
        {"previous_response_id": "", "background": False, "prompt": {}},
        {"include": ["reasoning.encrypted_content"]}, {"tools": None, "tool_choice": None},
    ],
    TOKENIZE: [{"messages": None}, {"prompt": None, "messages": [USER]}],
}  # fmt: skip
REFUSED: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        called(), called(name=5), called(name="f", arguments=[]), message(tool_calls={}),
        message(tool_calls=[{"name": "f", "function": None}]), message(tool_calls=["f"]),
        message(content=[5]), message(content=[{"type": "text"}]), message(reasoning_content=5),
        {"messages": [{"role": "tool", "content": [{"output": 5}, {"type": "b"}]}]},
        {"messages": [{"role": "user", "content": [{"output": 5}]}]},
        {"thinking": {"type": "adaptive"}}, {"thinking": {"type": None}},
        {"chat_template_kwargs": {"tokenize": None}}, {"chat_template_kwargs": {"thinking": 1}},
        {"chat_template_kwargs": {"thinking": True, "enable_thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": 5}, "tools": TOOLS, "tool_choice": "required"},
        {"tools": [{"function": {"name": "f", "strict": "yes"}}]},
        {"tools": [{"type": None, "function": {"name": "f"}}]},
        {"tool_choice": "required"}, {"tools": [], "tool_choice": TOOLS[0]}, {"top_logprobs": 1},
        {"tools": TOOLS, "tool_choice": "required", **json_schema(schema=5)}, *NO_FORMATS,
    ],
    COMPLETIONS: NO_FORMATS,
    MESSAGES: [
        {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": None}]},
        {"thinking": {}}, {"tools": [{"name": "f"}]}, {"tools": [{**TOOL, "input_schema": None}]},
        {"mcp_servers": [{}]}, {"mcp_servers": "a"},
        {"tools": [{**TOOL, "strict": 1}]}, {"tools": [{**TOOL, "name": "f\x1c"}]},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": ""}},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x" * 129}},
        {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": 1}},
        {"tool_choice": {"type": "any"}}, blocks("user", {"type": "thinking", "thinking": ""}),
        blocks("assistant", {"type": "tool_use"}), blocks("assistant", {"type": "thinking"}),
        blocks("assistant", {"type": "tool_use", "name": "f", "input": "{}"}),
    ],
    RESPONSES: [
        items({"type": "function_call_output"}), items({"role": "user"}),
        items({"type": "function_call_output", "output": None}),
        items({"role": "user", "content": None}), items({"type": "function_call", "name": "f"}),
        items({"type": "reasoning", "content": "So.", "summary": 5}), {"input": []},
        text_format(), text_format(name="n"), text_format(schema=OBJECT), {"prompt": {"id": "a"}},
        {"background": True}, {"tool_choice": "required"}, {"top_logprobs": 1},
        {"include": ["message.output_text.logprobs"]},
        {"tools": [{"type": "function", "name": "f", "strict": 1}]},
    ],
    TOKENIZE: [{"prompt": None}, {"messages": [USER]}],
}  # fmt: skip
TAKEN[COUNT], REFUSED[COUNT] = TAKEN[MESSAGES], REFUSED[MESSAGES]


def cases(table: dict[str, list[dict[str, Any]]]) -> pytest.MarkDecorator:
    pairs = [(path, extra) for path, extras in table.items() for extra in extras]
    return pytest.mark.parametrize(("path", "extra"), pairs, ids=lambda value: str(value)[:70])


@cases(TAKEN)
def test_what_is_allowed_is_taken(
    http: httpx.Client, document: Any, path: str, extra: dict[str, Any]
) -> None:
    assert agree(document, http, path, BODIES[path] | extra)


@cases(REFUSED)
def test_what_is_not_allowed_is_refused(
    http: httpx.Client, document: Any, path: str, extra: dict[str, Any]
) -> None:
    assert not agree(document, http, path, BODIES[path] | extra)
