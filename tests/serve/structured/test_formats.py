"""The fields of three vendors, and what they make of an answer."""

from typing import Any

import pytest

from glm_portable.serve.errors import ApiError
from glm_portable.serve.structured.formats import Format, format_of, text_format
from tests.serve.structured.following import error_of, follows, of_format

SCHEMA: Any = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GBNF = 'root ::= "a" digits (", " digits)?\ndigits ::= [0-9]+\n'
LARK = 'start: "a" DIGITS (", " DIGITS)?\nDIGITS: /[0-9]+/\n'
OBJECT = ('{"a": 5}', '{"a": "x"}')


def json_schema(**inner: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", **inner}}}


ASKED: list[tuple[dict[str, Any], tuple[str, str]]] = [
    (json_schema(schema=SCHEMA), OBJECT),
    (json_schema(schema=SCHEMA, strict=True), OBJECT),
    (json_schema(), ("{}", "[1]")),
    ({"response_format": {"type": "json_object"}}, ('{"b": [1]}', "[1]")),
    ({"guided_json": SCHEMA}, OBJECT),
    ({"guided_json": '{"type": "integer"}'}, ("5", "x")),
    ({"json_schema": '{"type": "integer"}'}, ("5", "x")),
    ({"structured_outputs": {"json": SCHEMA}}, OBJECT),
    ({"structured_outputs": {"json_object": True}}, ("{}", "[]")),
    ({"guided_regex": "[a-c]+/\\d"}, ("abc/5", "abd/5")),
    ({"regex": "^yes|no$"}, ("no", "maybe")),
    ({"structured_outputs": {"regex": "a+"}}, ("aaa", "")),
    ({"guided_choice": ["yes", 'say "no"\n', "ä😀", "yes and no"]}, ("yes and no", "no")),
    ({"structured_outputs": {"choice": ["ä😀"]}}, ("ä😀", "ä")),
    ({"guided_grammar": GBNF}, ("a12, 3", "a12,3")),
    ({"guided_grammar": LARK}, ("a12, 3", "a12,3")),
    ({"ebnf": GBNF}, ("a1", "b1")),
    ({"structured_outputs": {"grammar": LARK}}, ("a1", "b1")),
]


@pytest.mark.parametrize(("body", "texts"), ASKED, ids=lambda value: str(value)[:60])
def test_each_field_is_enforced(body: dict[str, Any], texts: tuple[str, str]) -> None:
    format = format_of(body | {"guided_decoding_backend": "xgrammar"})
    assert format is not None
    grammar = of_format(format)
    assert [follows(grammar, text) for text in texts] == [True, False]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"guided_json": None, "guided_regex": "", "guided_choice": [], "structured_outputs": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
    ],
)
def test_what_asks_for_nothing(body: dict[str, Any]) -> None:
    assert format_of(body) is None


def test_the_format_of_the_responses_api() -> None:
    format = text_format({"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA})
    assert format == Format("json_schema", "text.format.schema", SCHEMA, True)
    assert text_format({"type": "text"}) is None
    assert text_format({"type": "json_object"}) == Format("json_object", "text.format")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"response_format": "json"}, "response_format should be an object of type text"),
        ({"response_format": {"type": "xml"}}, "response_format should be an object of type text"),
        ({"response_format": {"type": "structural_tag"}}, "structural_tag is not supported"),
        (
            {"response_format": {"type": "json_schema", "json_schema": 5}},
            "response_format.json_schema should",
        ),
        (json_schema(strict="yes"), ".strict should be true or false"),
        ({"structured_outputs": "a"}, "structured_outputs should be an object"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structural_tag is not supported"),
        (
            {"guided_regex": "a", "guided_choice": ["a"]},
            "has guided_regex and guided_choice; give one",
        ),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "give one of them"),
    ],
)
def test_fields_that_are_wrong_are_refused(body: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError) as caught:
        format_of(body)
    assert said in caught.value.message and caught.value.status == 400


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("json_schema", "{", "f should be a JSON Schema, and is not valid JSON"),
        ("json_schema", "[" * 100_000, "f should be a JSON Schema"),
        ("regex", 5, "f should be a regular expression"),
        ("regex", "a" * 5_000, "f has 5000 characters"),
        ("choice", "a", "f should be a list"),
        ("choice", ["a", 5], "f should be a list"),
        ("choice", [""], "f should be a list"),
        ("choice", ["a"] * 5_000, "f should be a list of 1 to 4096"),
        ("choice", ["x" * 300_000], "f is too large"),
        ("grammar", 5, "f should be a grammar"),
        ("grammar", "a" * 100_000, "f should be a grammar of at most"),
        ("grammar", "hello", "f should define root"),
        ("grammar", "start: <|user|>", "f uses '<'"),
        ("grammar", "start: <[5]>", "f uses '<'"),
        ("grammar", "start: A\nA: ~/a/", "f uses '~'"),
        ("grammar", "start: A\nA: /a/ & /b/", "f uses '&'"),
        ("grammar", "start: @other", "f uses '@'"),
        ("grammar", 'start: %json {"type": "string"}', "f uses '%json'"),
        ("grammar", 'start: A\nA: %regex {"substring_chars": "abc"}', "f uses '%regex'"),
        ("grammar", '%llguidance {"no_forcing": true}\nstart: "a"', "f uses '%llguidance'"),
        ("grammar", 'start: a\na[stop="x"]: /b+/', "f uses '='"),
        ("grammar", 'start: a::0x0\na::_: "x"', "f uses '::'"),
    ],
)
def test_values_that_are_wrong_are_refused(kind: Any, value: Any, said: str) -> None:
    error = error_of(Format(kind, "f", value))
    assert error.message.startswith(said) and (error.status, error.param) == (400, "f")


def test_what_a_grammar_may_hold() -> None:
    lark = """
        start: "<~&@%=>" WORD  // <comment>
        %ignore /[ ]+/
        %import common.DIGIT
        WORD: /[<=]+/ DIGIT
    """
    assert follows(of_format(Format("grammar", "f", lark)), "<~&@%=> <=5")
