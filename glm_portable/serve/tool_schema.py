"""JSON types of tool parameters, and tool-call values turned from text into JSON.

GLM writes a string argument bare and everything else as JSON, so the text `5` is a string or a
number depending on the tool's schema alone. The rule, in order:

1. The schema says string and nothing else: the text is the value, verbatim.
2. The schema lists several types with string among them (type arrays, anyOf, oneOf, enum): the
   text is JSON if it decodes to one of the other listed types, otherwise a string, verbatim.
3. Anything else, unknown parameters included: JSON if it decodes, otherwise a string, verbatim.

Values that are JSON are passed on as they were written, so `1.0` or a long decimal stays exact.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

SPACE = " \t\r\n"
"""What counts as whitespace around tags: JSON's, so a Chinese paragraph keeps its U+3000 indent."""

_MAX_DEPTH = 128
"""Of a value, around which an answer adds some levels; its encoder stops at 255."""

_UNKNOWN: frozenset[str] = frozenset()
_STRING = frozenset({"string"})


class ToolSchema:
    """The declared parameters of one tool; tolerates any malformed schema."""

    def __init__(self, parameters: Any) -> None:
        self._root = parameters if isinstance(parameters, Mapping) else {}

    def types(self, parameter: str) -> frozenset[str]:
        """The JSON types a parameter may have; empty when the schema does not say."""
        schema = _follow(self._root, self._root)
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and parameter in properties:
            return _types(properties[parameter], self._root, depth=0)
        return _types(schema.get("additionalProperties"), self._root, depth=0)

    def is_text(self, parameter: str) -> bool:
        """Whether the parameter is a string and nothing else."""
        return self.types(parameter) == _STRING

    def encode(self, parameter: str, text: str) -> str:
        """The JSON of a complete value that the model wrote as `text`."""
        types = self.types(parameter)
        if types == _STRING:
            return quote(text)
        bare = text.strip(SPACE)
        kinds = kinds_of_json(bare)
        if not kinds or ("string" in types and not kinds & (types - _STRING)):
            return quote(text)
        return bare


class Arguments:
    """Builds the JSON text of one call's arguments, fragment by fragment."""

    def __init__(self, schema: ToolSchema) -> None:
        self._schema = schema
        self._keys: set[str] = set()
        self._key = ""
        self._held: list[str] = []
        self._is_text = self._open = self._skip = False

    def key(self, key: str) -> None:
        """A value of this parameter follows."""
        self._key, self._held = key, []
        self._is_text = self._schema.is_text(key)
        self._skip = key in self._keys

    def write(self, text: str) -> str:
        """Take a piece of the value. Only strings can be passed on before they are complete."""
        if self._skip or not text:
            return ""
        if not self._is_text:
            self._held.append(text)
            return ""
        opening = "" if self._open else self._name() + '"'
        self._open = True
        return opening + quote(text)[1:-1]

    def end(self) -> str:
        """The value is complete."""
        if self._skip:
            return ""
        if self._open:
            self._open = False
            return '"'
        return self._name() + self._schema.encode(self._key, "".join(self._held))

    def close(self) -> str:
        """The call is over, perhaps in the middle of a string."""
        return ('"' if self._open else "") + ("}" if self._keys else "{}")

    def _name(self) -> str:
        opening = ", " if self._keys else "{"
        self._keys.add(self._key)
        return f"{opening}{quote(self._key)}: "


def declared_tools(tools: Iterable[Any] | None) -> dict[str, ToolSchema]:
    """The schemas of OpenAI tool objects by function name."""
    functions = (tool.get("function") for tool in tools or () if isinstance(tool, Mapping))
    return {
        function["name"]: ToolSchema(function.get("parameters"))
        for function in functions
        if isinstance(function, Mapping) and isinstance(function.get("name"), str)
    }


def quote(text: str) -> str:
    """`text` as a JSON string. Escapes character by character: pieces join to the whole."""
    return json.dumps(text, ensure_ascii=False)


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth > 8:  # 8: a `$ref` may lead back to itself
        return _UNKNOWN
    schema = _follow(schema, root)
    declared = schema.get("type")
    if isinstance(declared, str):
        found = frozenset({declared})
    elif isinstance(declared, list):
        found = frozenset(t for t in declared if isinstance(t, str))
    else:
        found = _types_without_type(schema, root, depth)
    return found | {"null"} if found and schema.get("nullable") is True else found


def _types_without_type(schema: Mapping[str, Any], root: Any, depth: int) -> frozenset[str]:
    if "const" in schema:
        return _kinds(schema["const"])
    if isinstance(schema.get("enum"), list):
        return _UNKNOWN.union(*(_kinds(value) for value in schema["enum"]))
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(union), list):
            branches = [_types(branch, root, depth + 1) for branch in schema[union]]
            # A branch that allows anything makes the union say nothing, unless all must hold.
            open_ended = union != "allOf" and not all(branches)
            return _UNKNOWN if open_ended else _UNKNOWN.union(*branches)
    return _UNKNOWN


def _follow(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Resolve a chain of local `$ref`s; one that leads nowhere or in a circle says nothing."""
    for _ in range(8):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        target: Any = root if reference.startswith("#") else None
        for step in reference.lstrip("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        if not isinstance(target, Mapping):
            return {}
        schema = target
    return {}


def kinds_of_json(text: str) -> frozenset[str]:
    """The JSON types of a text; empty if it is none, or holds what an answer could not carry.

    That is NaN, infinite numbers (1e400 is one), lone surrogates and absurd depth.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        return _kinds(value) if _depth(value) <= _MAX_DEPTH else _UNKNOWN
    except (ValueError, RecursionError):  # of wrong JSON, wrong numbers and wrong characters
        return _UNKNOWN


def _depth(value: Any) -> int:
    """How many arrays and objects are around its innermost value."""
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 0


def _kinds(value: Any) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset({"integer", "number"})
    names = {type(None): "null", float: "number", str: "string", list: "array", dict: "object"}
    return frozenset({names[type(value)]}) if type(value) in names else _UNKNOWN
