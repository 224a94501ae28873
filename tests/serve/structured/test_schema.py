"""Schemas from outside: what is enforced, and what is refused by name."""

import json
from typing import Any

import pytest

from glm_portable.serve.errors import ApiError
from glm_portable.serve.structured.schema import alternatives, checked, pattern_problem
from tests.serve.structured.following import follows, of_schema

PERSON = {
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 5, "description": "A name."},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150, "format": "int32"},
        "kind": {"enum": ["a", 5, None]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"tag": {"anyOf": [{"const": "x"}, {"type": "boolean"}]}},
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            PERSON,
            [
                '{"name": "Ann", "age": 0}',
                '{"name":"Ann","age":149,"kind":null,"tags":["x",true],"zip":"53111"}',
                '{\n  "name": "Bäume",\n  "age": 7\n}',
            ],
            [
                '{"name": "A", "age": 0}',
                '{"name": "Annabel", "age": 0}',
                '{"name": "Ann", "age": 150}',
                '{"name": "Ann", "age": 1.5}',
                '{"name": "Ann"}',
                '{"name": "Ann", "age": 0, "kind": "b"}',
                '{"name": "Ann", "age": 0, "tags": []}',
                '{"name": "Ann", "age": 0, "tags": ["x", "x", "x"]}',
                '{"name": "Ann", "age": 0, "zip": "5311"}',
                '{"name": "Ann", "age": 0, "more": 1}',
                '{"name": "Ann",                      "age": 0}',
                '{"name": "Ann", "age": 0',
                '{"name": "Ann", "age": 0}}',
                "",
            ],
        ),
        (TREE, ['{"next": {"next": null}}'], ['{"next": {"next": 5}}', '{"next": {}}']),
        (True, ["5", '{"a": [null]}'], ["", "{'a': 5}"]),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
            ["[5]"],
            ["[[]]"],
        ),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"today"']),
        ({"uniqueItems": False, "nullable": False, "const": [1]}, ["[1]"], ["[2]"]),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["null", '"a"'], ["5"]),
        ({"type": "number", "multipleOf": 0.5}, ["1.5", "2"], ["1.3"]),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "null"}}},
            ['{"xa": null}'],
            ['{"xa": 5}'],
        ),
    ],
)
def test_a_schema_is_enforced(schema: Any, good: list[str], bad: list[str]) -> None:
    grammar = of_schema(schema)
    assert [text for text in good if not follows(grammar, text)] == []
    assert [text for text in bad if follows(grammar, text)] == []


@pytest.mark.parametrize(
    "keyword",
    """not if then else dependentRequired dependentSchemas contains minContains uniqueItems
    propertyNames unevaluatedItems unevaluatedProperties additionalItems $dynamicRef $anchor
    nullable""".split(),
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_keyword_that_cannot_be_enforced_is_named(keyword: str, strict: bool) -> None:
    inner = {"type": "array", keyword: True}
    with pytest.raises(ApiError) as caught:
        checked({"type": "object", "properties": {"a": inner}}, "guided_json", strict)
    assert caught.value.message == (
        f"guided_json.properties.a uses {keyword}, which is not supported."
    )
    assert (caught.value.status, caught.value.param) == (400, "guided_json")


def test_notes_are_dropped_and_a_strict_schema_has_only_keywords() -> None:
    schema = {"type": "string", "title": "T", "x-order": 5, "example": "e", "x-guidance": {}}
    assert checked(schema, "f") == {"type": "string"}
    with pytest.raises(ApiError, match="'x-order', which is no keyword"):
        checked(schema, "f", strict=True)
    assert checked({"type": "integer", "format": "int64", "title": "T"}, "f", True) == {
        "type": "integer"
    }


WRONG: list[tuple[Any, str]] = [
    (5, "should be a JSON Schema"),
    ([], "should be a JSON Schema"),
    (None, "should be a JSON Schema"),
    ({"type": "text"}, "f.type should be of array"),
    ({"type": 5}, "f.type"),
    ({"type": []}, "f.type"),
    ({"type": [["string"]]}, "f.type"),
    ({"properties": []}, "f.properties should be an object of schemas"),
    ({"properties": {"a": 5}}, "f.properties.a should be a schema"),
    ({"items": [{"type": "string"}]}, "f.items should be a schema"),
    ({"anyOf": []}, "f.anyOf should be a list of at least one schema"),
    ({"anyOf": [5]}, "f.anyOf[0] should be a schema"),
    ({"enum": []}, "f.enum"),
    ({"enum": "a"}, "f.enum"),
    ({"required": "a"}, "f.required"),
    ({"required": [5]}, "f.required"),
    ({"pattern": 5}, "f.pattern"),
    ({"patternProperties": {"(a{1000}){1000}": {}}}, "repeats more than"),
    ({"format": 5}, "f.format"),
    ({"format": "nope"}, "uses the format 'nope', which is not supported"),
    ({"minLength": 1e9}, "f.minLength should be an integer from 0 to 1000000"),
    ({"minItems": 10**9}, "f.minItems"),
    ({"maxItems": -1}, "f.maxItems"),
    ({"maxLength": "5"}, "f.maxLength"),
    ({"minProperties": True}, "f.minProperties"),
    ({"maxLength": 2.5}, "f.maxLength"),
    ({"minimum": "x"}, "f.minimum"),
    ({"minimum": float("nan")}, "f.minimum should be a finite number"),
    ({"maximum": float("inf")}, "f.maximum"),
    ({"exclusiveMinimum": True}, "f.exclusiveMinimum"),
    ({"maximum": 1e300}, "f.maximum"),
    ({"multipleOf": 0}, "f.multipleOf"),
    ({"multipleOf": 999983}, "f.multipleOf"),
    ({"$ref": "http://127.0.0.1:9/schema"}, "should point into the schema itself"),
    ({"$ref": "file:///etc/passwd"}, "should point into the schema itself"),
    ({"$ref": 5}, "f.$ref"),
]


@pytest.mark.parametrize(("schema", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named_with_its_place(schema: Any, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        checked(schema, "f")
    assert said in caught.value.message and caught.value.status == 400


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(60),
        nested(20_000),
        {"enum": [f"value {n}" for n in range(30_000)]},
        {"enum": ["x" * 300_000]},
        {"properties": {f"p{n}": {"type": "string"} for n in range(10_000)}},
        {"description": "y" * 300_000},
    ],
    ids=["deep", "very deep", "giant enum", "long enum", "properties", "long note"],
)
def test_a_schema_has_bounds(schema: Any) -> None:
    with pytest.raises(ApiError) as caught:
        checked(schema, "f")
    assert "too large" in caught.value.message or "nested" in caught.value.message


@pytest.mark.parametrize(
    "pattern",
    [
        "(a{1000}){1000}",
        "((((a{90}){90}){90}){90})",
        "(a{500})+{500}",
        "a{300}{300}",
        "(ab{9}c{ 9999 , 99999}){9}" * 9,
    ],
)
def test_nested_repetition_is_bounded(pattern: str) -> None:
    assert "repeats more than" in (pattern_problem(pattern) or "")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        r"\d{4}-\d{2}-\d{2}",
        "((a|.{1,90000})+x)*",
        "(ab{2}){100}",
        ".{1,100000}",
        r"[{}(]{5}\{9999999\}",
        "a" * 4000,
        ")(",
    ],
)
def test_ordinary_patterns_are_not(pattern: str) -> None:
    assert pattern_problem(pattern) is None


def test_the_branches_of_a_pattern() -> None:
    assert alternatives(r"^a|(b|c)$|[|]\|") == ["^a", "(b|c)$", r"[|]\|"]


def test_a_schema_in_json_keeps_its_order() -> None:
    schema = json.loads('{"properties": {"b": {}, "a": {}}, "required": ["a"], "type": "object"}')
    assert json.dumps(checked(schema, "f")) == json.dumps(schema)
