"""A strict tool's arguments in both layouts, and the form of other tools' calls."""

import json
from typing import Any

import pytest

from glm_portable.serve.errors import ApiError
from glm_portable.serve.parsing import parse
from glm_portable.serve.structured.calls import Calls
from tests.serve.structured.following import VOCABULARY, arguments, follows, of_arguments

LAYOUTS = pytest.mark.parametrize("layout", ["glm45", "glm47"])
TRIP: Any = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {
        "stop": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        }
    },
}
STOPS = '[{"name": "Köln"}]'


@LAYOUTS
@pytest.mark.parametrize(
    ("values", "valid"),
    [
        ({"city": "Bonn", "days": "3"}, True),
        ({"days": "3", "city": "Bonn"}, True),
        ({"days": "9", "unit": "F", "city": "", "stops": STOPS}, True),
        ({"city": "Bonn"}, False),
        ({"days": "3"}, False),
        ({}, False),
        ({"city": "Bonn", "days": "10"}, False),
        ({"city": "Bonn", "days": '"3"'}, False),
        ({"city": "Bonn am Rhein", "days": "3"}, False),
        ({"city": "Bonn", "days": "3", "unit": "K"}, False),
        ({"city": "Bonn", "days": "3", "stops": '[{"name": 5}]'}, False),
        ({"city": "Bonn", "days": "3", "more": "x"}, False),
    ],
)
def test_a_strict_tools_arguments(layout: Any, values: dict[str, str], valid: bool) -> None:
    assert follows(of_arguments(TRIP, layout), arguments(layout, **values)) is valid


def test_an_argument_comes_once() -> None:
    call = arguments(city="Bonn", days="3")
    twice = call.removesuffix("</tool_call>") + arguments(days="4")
    assert follows(of_arguments(TRIP), call) and not follows(of_arguments(TRIP), twice)


def test_a_string_in_json_does_not_end_its_argument() -> None:
    note = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 40}}}
    grammar = of_arguments({"properties": {"note": note}, "required": ["note"]})
    for text in ("", "<", "</arg", "<<</arg_value", "a </arg_valu> </arg_key> b", "1 < 2 / 3>"):
        assert follows(grammar, arguments(note=json.dumps({"text": text}))), text
    for text in ("</arg_value>", "a </arg_value> b", "<</arg_value>", "</arg</arg_value>"):
        assert not follows(grammar, arguments(note=json.dumps({"text": text}))), text


@LAYOUTS
def test_a_tool_without_parameters(layout: Any) -> None:
    for parameters in (None, {}, {"type": "object", "properties": {}}):
        grammar = of_arguments(parameters, layout)
        assert follows(grammar, arguments(layout))
        assert not follows(grammar, arguments(layout, a="1"))


TEXTS: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "string"}, ["", " a\n<b> </arg_key> ", "5", "null"], []),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü"], ["a", "abcd"]),
    ({"type": "string", "pattern": "^[a-c]+$"}, ["abc"], ["", "abd", " abc"]),
    ({"type": "string", "pattern": "b{2}"}, ["abbc", "bb"], ["ab"]),
    ({"type": "string", "pattern": "^a|z$"}, ["ab", "bz"], ["ba"]),
    ({"type": "string", "pattern": "^\\d+$", "maxLength": 2}, ["12"], ["123", "٣"]),
    ({"const": "x y"}, ["x y"], ["x"]),
    ({"enum": ["a", 5, True]}, ["a", "5", "true"], ["b", "6", '"a"']),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01"]),
    ({"type": "string", "format": "date-time"}, ["2024-02-29T10:00:00Z"], ["2024-02-29"]),
    ({"type": "string", "format": "time"}, ["23:59:59+01:00"], ["24:00:00Z"]),
    ({"type": "string", "format": "uuid"}, ["0" * 8 + "-0000" * 3 + "-" + "a" * 12], ["0"]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["127.0.0.256"]),
    ({"type": "string", "format": "email"}, ["a.b@c.de"], ["a.b"]),
    ({"type": ["string", "null"]}, ["null", "nul", "a", '"null"'], []),
    ({"type": ["string", "null"], "enum": ["a", None]}, ["a", "null"], ["b"]),
    (
        {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
        ["abc", "5", "-1000", "-"],
        ["1.5", " 7 ", "abcd"],
    ),
    (
        {"anyOf": [{"type": "string"}, {"type": "object", "required": ["a"]}]},
        ["x {", '{"a": 1}'],
        ["{", " {}", '{"b": 1}'],
    ),
    ({"anyOf": [{"$ref": "#/$defs/s"}, {"type": "null"}]}, ["ok", "null"], ["no"]),
    ({"allOf": [{"$ref": "#/$defs/s"}], "title": "S"}, ["ok"], ["no"]),
    ({"type": "boolean"}, ["true"], ["True", '"true"']),
    ({}, ['"text"', "5", "[1]"], ["text"]),
    (True, ["5"], ["text"]),
]


@LAYOUTS
@pytest.mark.parametrize(("schema", "good", "bad"), TEXTS, ids=lambda value: str(value)[:50])
def test_a_value_is_text_or_json_as_it_is_read(
    layout: Any, schema: Any, good: list[str], bad: list[str]
) -> None:
    definitions = {"s": {"type": "string", "enum": ["ok"]}}
    parameters = {"properties": {"v": schema}, "required": ["v"], "$defs": definitions}
    grammar = of_arguments(parameters, layout)
    for text in good:
        assert follows(grammar, arguments(layout, v=text)), text
    for text in bad:
        assert not follows(grammar, arguments(layout, v=text)), text
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    opening = "<tool_call>f\n" if layout == "glm45" else "<tool_call>f"
    [call] = parse(opening + arguments(layout, v=good[0]), [tool], thinking=False).tool_calls
    assert list(json.loads(call.arguments)) == ["v"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"type": "object", "anyOf": [{}]}, "uses anyOf, which a strict tool's parameters cannot"),
        ({"type": "array"}, "is not of type object"),
        ({"properties": {}, "required": ["a"]}, "has 'a', which is no property"),
        ({"properties": {"a<b": {}}}, "call format cannot carry"),
        ({"properties": {f"p{n}": {} for n in range(65)}}, "more than 64 properties"),
        ({"properties": {"a": {"uniqueItems": True}}}, "uses uniqueItems, which is not supported"),
        ({"properties": {"a": {"type": "string", "format": "uri"}}}, "uses the format 'uri'"),
        ({"properties": {"a": {"enum": ["</arg_value>"]}}}, "holds </arg_value>"),
        ({"properties": {"a": False}}, "cannot be"),
        ({"properties": {"a": {"type": "string", "anyOf": [{"$ref": "#/x"}]}}}, "leads nowhere"),
        ({"properties": {"a": {"type": ["string", "number"], "minimum": 5}}}, "uses minimum"),
        (
            {"properties": {"a": {"anyOf": [{"type": "string"}], "maxLength": 5}}},
            "uses anyOf in a way that is not supported",
        ),
        ("x", "should be a JSON Schema"),
    ],
)
def test_what_a_strict_tool_cannot_have(parameters: Any, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        of_arguments(parameters)
    assert said in caught.value.message
    assert caught.value.message.startswith("tools[0].function.parameters")


@LAYOUTS
def test_other_tools_calls_have_the_form(layout: Any) -> None:
    gap = "\n" if layout == "glm45" else ""
    declared = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    functions = [{"name": "get", "parameters": declared}, {"name": "get_any"}]
    tools: Any = [(f"tools[{n}]", {"function": f}) for n, f in enumerate(functions)]
    rules = Calls(tools, layout).rules
    grammar = VOCABULARY.compile(f"start: call more_calls\n{rules}")
    one = f"get{gap}{arguments(layout, city='anything <at> all')}"
    assert follows(grammar, one)
    assert follows(grammar, f"get{gap}{arguments(layout)}")
    assert follows(grammar, f"get_any{gap}{arguments(layout, key='x', other='y')}")
    assert follows(grammar, f"{one}{gap}<tool_call>get_any{gap}{arguments(layout)}")
    assert not follows(grammar, f"get{gap}{arguments(layout, town='Bonn')}")
    assert not follows(grammar, one.removesuffix("</tool_call>"))
    assert not follows(grammar, f"{one} and more")
