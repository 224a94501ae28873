"""Bodies that are wrong, or right and expensive."""

import json
from collections.abc import Iterator
from typing import Any

from tools.abuse.target import CHAT, QUESTION, TALK, VALID, Target

REFUSED = range(400, 500)
DEEP = 100_000

MALFORMED = {
    "nothing": b"",
    "blanks": b" \n",
    "null": b"null",
    "an array": b"[]",
    "a number": b"5",
    "a string": b'"messages"',
    "an open object": b"{",
    "an open string": b'{"prompt": "a',
    "an open array": b'{"messages": [{"role": "user"',
    "a trailing comma": b'{"prompt": "a",}',
    "single quotes": b"{'prompt': 'a'}",
    "a comment": b'{"prompt": "a" /* b */}',
    "two objects": b"{} {}",
    "bytes that are no UTF-8": b'{"prompt": "\xff\xfe", "input": "\xff", "messages": "\xff"}',
    "half a character": b'{"prompt": "\xe2\x82"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "a zero byte": b"\x00",
    "a bare control character": b'{"prompt": "a\x01b", "input": "\x01", "messages": "\x01"}',
    "open arrays": b"[" * DEEP,
    "open objects": b'{"a":' * DEEP,
    "deep arrays": b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a form": b"prompt=a&messages=b",
    "XML": b"<prompt>a</prompt>",
}
WRONG: tuple[Any, ...] = (5, -1, 1e308, True, "x", "", [], {}, [None], {"a": [{}]}, [[[]]])


async def malformed(target: Target, share: int) -> None:
    """Every one is refused, at every endpoint."""
    for path in target.endpoints:
        for name, body in MALFORMED.items():
            await target.post(path, body, name, REFUSED)


async def wrong_types(target: Target, share: int) -> None:
    """Every field of every endpoint with values of other types: refused or answered."""
    cases = [
        (path, field, value)
        for path, fields in target.endpoints.items()
        for field in fields
        for value in WRONG
    ]
    for path, field, value in cases[::share]:
        body = VALID[path] | {field: value}
        await target.post(path, body, f"{field} = {json.dumps(value)}")


async def odd_numbers(target: Target, share: int) -> None:
    """Numbers that JSON's grammar allows and no computer holds."""
    for number in ("1e999", "-1e999", "1" * 5000, "0." + "1" * 5000, "-0", "1e-999", "NaN"):
        for field in ("max_tokens", "temperature", "seed", "n", "top_k", "logit_bias"):
            body = json.dumps(VALID[CHAT])[:-1] + f', "{field}": {number}}}'
            await target.post(CHAT, body.encode(), f"{field} = {number[:20]}")


async def odd_texts(target: Target, share: int) -> None:
    """A surrogate without its other half cannot become UTF-8; what can is answered."""
    for path in target.endpoints:
        lone = json.dumps(VALID[path]).replace("Hi.", "\\ud800")
        if "ud800" in lone:
            await target.post(path, lone.encode(), "a lone surrogate", REFUSED)
    for text in ("\x00", "\U0001f600", "\u202e", "\ufffe"):
        await target.post(CHAT, _asking(text), f"the text {text!r}", range(200, 201))


async def control_tokens(target: Target, share: int) -> None:
    """A control token in a user's text is text: it counts as several tokens, not as one."""
    count = 20
    for token in ("<|assistant|>", "<|user|>", "[gMASK]", "<sop>", "<|endoftext|>"):
        answer = await target.post(CHAT, _asking(token * count), token, range(200, 201))
        if answer is not None and answer.status_code == 200:
            tokens = answer.json()["usage"]["prompt_tokens"]
            if tokens < 2 * count:
                target.findings.append(f"{token} in a user's text became a control token")


async def large(target: Target, share: int) -> None:
    """Large, but within the body's limit."""
    many = 20_000
    bodies: list[dict[str, Any]] = [
        {"messages": TALK * many},
        _asking("word " * 200_000),
        _asking([{"type": "text", "text": "a"}] * many),
        QUESTION | {"stop": ["a"] * many},
        QUESTION | {"stop": "a" * 2**20},
        QUESTION | {"logit_bias": {str(i): 1 for i in range(many)}},
        QUESTION | {"tools": [_tool({"type": "object"})] * many},
        QUESTION | {"model": "m" * 2**20},
        QUESTION | {"x" * 2**20: 1},
        QUESTION | {"metadata": {str(i): "a" for i in range(many)}},
        *({"prompt": prompt} for prompt in ([5] * 1_000_000, [[5]] * many, ["a"] * many)),
    ]
    for body in bodies[::share]:
        path = "/v1/completions" if "prompt" in body else CHAT
        await target.post(path, body, f"large: {', '.join(map(str, body))[:60]}")


def _nested(depth: int, wrap: str) -> Any:
    """A schema of `depth` levels, as text: json.dumps would recurse."""
    return "".join([wrap.partition("*")[0] * depth, "{}", wrap.partition("*")[2] * depth])


SCHEMAS: dict[str, Any] = {
    "a string of a billion": {"type": "string", "minLength": 10**9},
    "an array of a billion": {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
    "a billion properties": {"type": "object", "minProperties": 10**9},
    "a long enum": {"enum": [f"value {i}" for i in range(100_000)]},
    "many properties": {"type": "object", "properties": {f"p{i}": {} for i in range(20_000)}},
    "a reference to itself": {"$ref": "#"},
    "a loop of references": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "a reference to another host": {"$ref": "http://127.0.0.1:9/schema.json"},
    "a reference to a file": {"$ref": "file:///etc/passwd"},
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "2^20 alternatives": {
        "$ref": "#/$defs/a0",
        "$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(20)}
        | {"a20": {"type": "string"}},
    },
    "a slow pattern": {"type": "string", "pattern": "^(a+)+$"},
    "a huge pattern": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
    "a broken pattern": {"type": "string", "pattern": "(["},
    "a pattern of a megabyte": {"type": "string", "pattern": "a?" * 500_000},
    "an unknown type": {"type": "teapot"},
    "a type that is a number": {"type": 5},
    "an impossible one": {"type": "integer", "minimum": 5, "maximum": 4},
    "an array for a schema": [],
}
EXPRESSIONS = {
    "regex": ("(a+)+$", "(a{1,1000}){1,1000}", "([", "a" * 2**20, "(?=a)b", "[\\p{L}]{1,9999999}"),
    "grammar": (
        "root ::= root",
        "start: start",
        "x",
        'root ::= "a"' * 100_000,
        "start: " + "(" * DEEP,
    ),
    "choice": ([], ["a"] * 100_000, ["a" * 2**20], [""]),
}


async def schema_bombs(target: Target, share: int) -> None:
    """Schemas, patterns and grammars made to be slow or large, wherever one can be sent."""
    for what, body in [*_schema_bombs(), *_expression_bombs(), *_deep_bombs()][::share]:
        await target.post(CHAT, body, what)


def _schema_bombs() -> Iterator[tuple[str, Any]]:
    for name, schema in SCHEMAS.items():
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        yield f"schema: {name}", VALID[CHAT] | {"response_format": form}
        for choice in ("auto", "required"):
            tools = {"tools": [_tool(schema, strict=True)], "tool_choice": choice}
            yield f"tool, {choice}: {name}", VALID[CHAT] | tools


def _expression_bombs() -> Iterator[tuple[str, Any]]:
    for kind, expressions in EXPRESSIONS.items():
        for expression in expressions:
            for extra in (
                {f"guided_{kind}": expression},
                {"structured_outputs": {kind: expression}},
            ):
                yield f"{kind} {str(expression)[:40]}", VALID[CHAT] | extra


def _deep_bombs() -> Iterator[tuple[str, bytes]]:
    for wrap in ('{"properties": {"a": *}}', '{"items": *}', '{"anyOf": [*]}', '{"not": *}'):
        for depth in (50, 5000):
            for body in _bodies_around(_nested(depth, wrap)):
                yield f"{depth} levels of {wrap}", body.encode()


def _bodies_around(schema: str) -> list[str]:
    start = json.dumps(VALID[CHAT])[:-1]
    form = '{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}'
    tool = '[{"type": "function", "function": {"name": "f", "parameters": %s}}]'
    call = '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": %s}}]}]'
    return [
        f'{start}, "response_format": {form % schema}}}',
        f'{start}, "tools": {tool % schema}}}',
        f'{{"messages": {call % schema}, "max_tokens": 2}}',
        f'{start}, "chat_template_kwargs": {schema}}}',
    ]


async def template_bombs(target: Target, share: int) -> None:
    """What would run code, read files or fetch addresses, had the server believed it."""
    bomb = "{% for i in range(999999999) %}a{% endfor %}"
    for body in (
        QUESTION | {"chat_template": bomb},
        QUESTION | {"chat_template_kwargs": {"chat_template": bomb}},
        QUESTION | {"chat_template_kwargs": {"tokenize": False}},
        _asking([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}]),
        _asking([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
        QUESTION | {"n": 10**9},
        QUESTION | {"max_tokens": 10**12},
        QUESTION | {"logits_processors": ["os.system"]},
    ):
        await target.post(CHAT, body, json.dumps(body)[:100])
    body = {"prompt": "a", "prompt_embeds": "gASVAAAAAAAAAAA=", "max_tokens": 1}
    await target.post("/v1/completions", body, "prompt_embeds", REFUSED)
    await target.post(CHAT, _asking(bomb), "a template as text", range(200, 201))


def _asking(content: Any) -> dict[str, Any]:
    return VALID[CHAT] | {"messages": [{"role": "user", "content": content}]}


def _tool(parameters: Any, **extra: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **extra}}
