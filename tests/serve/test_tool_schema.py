import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_portable.serve.tool_schema import ToolSchema, declared_tools, quote

DEFINITIONS = {
    "$defs": {
        "Unit": {"type": "string", "enum": ["C", "F"]},
        "Loop": {"$ref": "#/$defs/Loop"},
        "Ring": {"anyOf": [{"$ref": "#/$defs/Ring"}]},
        "a/b": {"type": "integer"},
    }
}


def encode(schema: Any, text: str) -> Any:
    """The Python value of `text` as a parameter `p` of the given schema."""
    return json.loads(ToolSchema({"properties": {"p": schema}} | DEFINITIONS).encode("p", text))


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": "string", "nullable": True}, {"string", "null"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"enum": ["a", 1, None]}, {"string", "integer", "number", "null"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "string"}, {"type": "array"}]}, {"string", "array"}),
        ({"oneOf": [{"enum": ["a"]}, {"type": "null"}]}, {"string", "null"}),
        ({"allOf": [{"$ref": "#/$defs/Unit"}, {"description": "x"}]}, {"string"}),
        ({"anyOf": [{"type": "string"}, {}]}, set()),
        ({"$ref": "#/$defs/Unit"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"integer"}),
        ({"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]}, {"string", "null"}),
        ({"$ref": "#/$defs/Loop"}, set()),
        ({"$ref": "#/$defs/Ring"}, set()),
        ({"$ref": "#/$defs/none"}, set()),
        ({"$ref": "http://127.0.0.1/x"}, set()),
        ({"$ref": 5, "type": "string"}, {"string"}),
        ({"type": 5, "anyOf": 5, "enum": 5}, set()),
        ({}, set()),
        (None, set()),
        (True, set()),
    ],
)
def test_the_types_a_schema_allows(schema: Any, types: set[str]) -> None:
    assert ToolSchema({"properties": {"p": schema}} | DEFINITIONS).types("p") == types


@pytest.mark.parametrize("parameters", [None, [], "x", {"properties": []}, {"$ref": "#"}, {}])
def test_malformed_parameters_say_nothing(parameters: Any) -> None:
    assert ToolSchema(parameters).types("p") == set()


def test_additional_properties_and_a_referenced_root() -> None:
    assert ToolSchema({"additionalProperties": {"type": "string"}}).is_text("any")
    root = {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"p": {"type": "string"}}}}}
    assert ToolSchema(root).is_text("p")
    assert not ToolSchema(root).is_text("q")


@pytest.mark.parametrize("text", ["5", "null", '"a"', " a ", ""])
def test_a_string_is_never_decoded(text: str) -> None:
    assert encode({"type": "string"}, text) == text
    assert encode({"$ref": "#/$defs/Unit"}, text) == text


@pytest.mark.parametrize(
    ("types", "text", "value"),
    [
        (["string", "null"], "null", None),
        (["string", "null"], " null\n", None),
        (["string", "null"], "nil", "nil"),
        (["string", "null"], "5", "5"),
        (["string", "integer"], "5", 5),
        (["string", "integer"], "5.5", "5.5"),
        (["string", "number"], "5.5", 5.5),
        (["string", "number"], " 5 x", " 5 x"),
        (["string", "boolean"], "true", True),
        (["string", "boolean"], "1", "1"),
        (["string", "array"], '["a"]', ["a"]),
        (["string", "array"], '"a"', '"a"'),
        (["string", "object"], "{}", {}),
        (["string", "object"], "{", "{"),
    ],
)
def test_a_union_with_string(types: list[str], text: str, value: Any) -> None:
    assert encode({"type": types}, text) == value
    assert encode({"anyOf": [{"type": t} for t in types]}, text) == value


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"type": ["integer", "null"]}, {}, None])
@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), (" 5\n", 5), ('"5"', "5"), ("[5]", [5]), ("null", None), ("five ", "five ")],
)
def test_otherwise_json_if_it_is_json(schema: Any, text: str, value: Any) -> None:
    assert encode(schema, text) == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "[-Infinity]", "1e400", r'["\ud800"]', r'{"\udfff": 1}', "[" * 200 + "]" * 200],
)
@pytest.mark.parametrize("schema", [{"type": ["array", "number"]}, {}])
def test_what_no_json_or_utf8_can_carry_is_text(schema: Any, text: str) -> None:
    assert encode(schema, text) == text


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert encode({"type": "array"}, r'["\ud83d\ude42"]') == ["🙂"]


@settings(deadline=None)
@given(st.text(), st.lists(st.integers(0, 50)))
def test_quoted_pieces_join_to_the_quoted_whole(text: str, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    assert "".join(quote(piece)[1:-1] for piece in pieces) == quote(text)[1:-1]


def test_declared_tools_skips_what_is_no_function() -> None:
    tools = [{"function": {"name": "f"}}, {"function": {"name": 5}}, {"function": None}, "x", {}]
    assert list(declared_tools(tools)) == ["f"]
    assert declared_tools(None) == {}
