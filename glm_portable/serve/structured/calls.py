"""Tool calls in GLM's own layout as a grammar: arguments in any order, each at most once.

The arguments of a strict tool satisfy its parameters' schema as `ToolSchema` will read them back: a
string is bare text up to </arg_value>, everything else JSON, and where both are declared a text
that reads as JSON of another declared type is that value. Of other tools' calls only the form is
enforced.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm_portable.engine import grammar
from glm_portable.serve.chat import Format as Layout
from glm_portable.serve.errors import bad_request
from glm_portable.serve.parsing import CALL, END_CALL, END_KEY, END_VALUE, KEY, VALUE
from glm_portable.serve.structured.schema import alternatives, checked
from glm_portable.serve.tool_schema import ToolSchema, kinds_of_json

MAX_PARAMETERS = 64  # one bit of the library's parameter for each

_PARAMETERS_MAY_HAVE = frozenset(
    "type properties required additionalProperties $defs definitions".split()
)

_INTEGER = "-?(0|[1-9][0-9]*)"
_SCALARS = {
    "null": "null",
    "boolean": "true|false",
    "integer": _INTEGER,
    "number": rf"{_INTEGER}(\.[0-9]+)?([eE][+-]?[0-9]+)?",
}
_NUMBER_BOUNDS = frozenset(
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split(),
)
_SET_TEXTS = frozenset("const enum pattern format".split())
_OTHER_KINDS = {
    **_SCALARS,
    "integer": _SCALARS["number"],  # 1.0 and 1e2 are integers to JSON Schema
    "array": r"\[(?s:.*)",
    "object": r"\{(?s:.*)",
}
"""What a bare text must not look like where it would be read as one of these."""

_FORMATS = {
    "date": "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])",
    "email": r"[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@([A-Za-z0-9-]+\.)+[A-Za-z]{2,}",
}
_FORMATS["time"] = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]+)?(Z|[+-][0-9]{2}:[0-5][0-9])"
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"


@dataclass(frozen=True)
class _Tags:
    """The text around the parts of a call."""

    separator: str
    after_name: str
    between: str
    after_value: str


_TAGS = {
    "glm45": _Tags("\n", "\n", "\n", "\n"),
    "glm47": _Tags("", "", "", ""),
}


def opening(layout: Layout, name: str | None = None) -> str:
    """The beginning of a call, up to a tool's name or, with `name`, to what ends it."""
    tags = _TAGS[layout]
    return tags.separator + CALL + (name + tags.after_name if name is not None else "")


def is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True


class Calls:
    """Rules for calls of some tools.

    `rules` defines call, from a tool's name to the call's end; rest_of_call, what follows the name
    of the first tool; and more_calls, any number of whole ones.
    """

    def __init__(self, tools: Sequence[tuple[str, Mapping[str, Any]]], layout: Layout) -> None:
        """tools: each with its place in the request. Raises ApiError for a schema."""
        self._tags = _TAGS[layout]
        self._rules: list[str] = []
        names = [self._tool(number, *tool) for number, tool in enumerate(tools)]
        self._rules.append(f"call: {' | '.join(names)}")
        self._rules.append("rest_of_call: tool0_rest")
        separator = grammar.literal(opening(layout))
        self._rules.append(f"more_calls: ({separator} call)*")

    @property
    def rules(self) -> str:
        return "\n".join(self._rules)

    def _tool(self, number: int, place: str, tool: Mapping[str, Any]) -> str:
        function = tool["function"]
        rule = f"tool{number}"
        arguments = f"{rule}_arguments"
        start = grammar.literal(function["name"] + self._tags.after_name)
        end = grammar.literal(END_CALL)
        if is_strict(tool):
            where = f"{place}.function.parameters"
            written = self._strict(arguments, where, function.get("parameters"))
        else:
            written = self._any(arguments, declared_names(function.get("parameters")))
        self._rules.append(f"{rule}_rest: {written} {end}")
        self._rules.append(f"{rule}: {start} {rule}_rest")
        return rule

    def _any(self, rule: str, names: Sequence[str]) -> str:
        """Arguments of declared names, if there are any, and any text as their values."""
        name = " | ".join(map(grammar.literal, names)) or grammar.regex(r"[^<\s][^<\n]{0,255}")
        self._rules.append(f"{rule}: {rule.upper()}")
        before, after = grammar.literal(KEY), grammar.literal(END_KEY + self._tags.between + VALUE)
        value = f"({grammar.without(END_VALUE)}) {self._end}"
        self._rules.append(f"{rule.upper()}: {before} ({name}) {after} {value}")
        return f"{rule}*"

    def _strict(self, rule: str, place: str, parameters: Any) -> str:
        """The declared arguments; the bits of the rule's parameter are those that have come."""
        schema = checked(parameters or {}, place, strict=False)
        properties, required = _shape(schema, place)
        done = ""
        for bit, name in enumerate(properties):
            if name in required:
                done = f"and({done}, bit_set({bit}))" if done else f"bit_set({bit})"
        lines = [f'{rule}::_: ""' + (f" %if {done}" if done else "")]
        tool_schema = ToolSchema(schema)
        for bit, (name, value) in enumerate(properties.items()):
            start = f"{KEY}{name}{END_KEY}{self._tags.between}{VALUE}"
            argument = f"{rule}_{bit}"
            then = f"{argument} {rule}::set_bit({bit}) %if bit_clear({bit})"
            lines.append(f"  | {grammar.literal(start)} {then}")
            types = tool_schema.types(name)
            self._value(argument, f"{place}.properties.{name}", schema, value, types)
        self._rules += lines if properties else []
        return f"{rule}::0x0" if properties else ""

    def _value(
        self, rule: str, place: str, root: Mapping[str, Any], schema: Any, types: frozenset[str]
    ) -> None:
        """A value and the end of it, of the types as which it will be read.

        Beside a string the scalars are texts as well: the library's lexer takes the longest match,
        and a string can go on where a number has ended.
        """
        options = []
        if "string" in types:
            texts = list(_Texts(root, types - {"string"}, place).of(schema))
            if texts:
                options.append(rule.upper())
                self._rules.append(f"{rule.upper()}: ({' | '.join(texts)}) {self._end}")
        in_json = types & {"object", "array"} if "string" in types else types
        if in_json or not types:
            value = _with_definitions(root, schema)
            if "string" in types:
                value = {"allOf": [value, {"type": sorted(in_json)}], **_definitions(root)}
            options.append(f"{rule}_json {self._end}")
            self._rules.append(f"{rule}_json: {grammar.json_value(_without_end(value))}")
        if not options or schema is False:
            raise bad_request(f"{place} cannot be satisfied by any value.", place)
        self._rules.append(f"{rule}: {' | '.join(options)}")

    @property
    def _end(self) -> str:
        return grammar.literal(END_VALUE + self._tags.after_value)


def declared_names(parameters: Any) -> list[str]:
    """The names that a tool declares and GLM's call format can carry."""
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return [name for name in properties if _fits(name)] if isinstance(properties, Mapping) else []


def _fits(name: str) -> bool:
    return bool(name) and name == name.strip() and "<" not in name and "\n" not in name


def _shape(schema: Mapping[str, Any], place: str) -> tuple[Mapping[str, Any], Sequence[str]]:
    """The properties and the required ones of a tool's parameters."""
    extra = sorted(set(schema) - _PARAMETERS_MAY_HAVE)
    if extra or schema.get("type", "object") != "object":
        problem = f"uses {extra[0]}" if extra else "is not of type object"
        raise bad_request(f"{place} {problem}, which a strict tool's parameters cannot.", place)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    missing = [name for name in required if name not in properties]
    if missing:
        raise bad_request(f"{place}.required has {missing[0][:60]!r}, which is no property.", place)
    if len(properties) > MAX_PARAMETERS:
        raise bad_request(f"{place} has more than {MAX_PARAMETERS} properties.", place)
    for name in properties:
        if not _fits(name):
            raise bad_request(f"{place} has a name that GLM's call format cannot carry.", place)
    return properties, required


def _definitions(root: Mapping[str, Any]) -> dict[str, Any]:
    return {name: root[name] for name in ("$defs", "definitions") if name in root}


def _never(tag: str) -> str:
    """A pattern of text without a tag that has its only "<" at the front."""
    sizes = range(1, len(tag))
    begun = f"(?:{'|'.join(re.escape(tag[:size]) for size in sizes)})*"
    other = "|".join(f"{re.escape(tag[:size])}[^<{re.escape(tag[size])}]" for size in sizes)
    return f"^(?:[^<]|{begun}(?:{other}))*{begun}$"


_OF_NAMES = frozenset("properties patternProperties $defs definitions".split())
_OF_SCHEMAS = frozenset("anyOf oneOf allOf prefixItems".split())
_OF_ONE = frozenset("items additionalProperties".split())


def _without_end(schema: Any) -> Any:
    """The schema, its free strings without the tag that would end the value around them."""
    if not isinstance(schema, Mapping):
        return schema
    copy: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _OF_NAMES:
            value = {name: _without_end(item) for name, item in value.items()}
        elif keyword in _OF_SCHEMAS:
            value = [_without_end(item) for item in value]
        elif keyword in _OF_ONE:
            value = _without_end(value)
        copy[keyword] = value
    if "string" in schema.get("type", ()) and not _SET_TEXTS & set(schema):
        copy["pattern"] = _never(END_VALUE)
    return copy


def _with_definitions(root: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    if isinstance(schema, bool):
        return {} if schema else {"allOf": [False]}
    return {**_definitions(root), **schema}


class _Texts:
    """The bare texts that a schema allows, as terminals.

    others: the other types that the parameter may have.
    """

    def __init__(self, root: Mapping[str, Any], others: Iterable[str], place: str) -> None:
        self._root, self._others, self._place = root, frozenset(others), place

    def of(self, schema: Any, depth: int = 0) -> Iterator[str]:
        schema = self._resolved(schema)
        if schema is False:
            return
        if "const" in schema or "enum" in schema:
            yield from map(grammar.literal, self._literals(schema))
            return
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                self._check_alone(schema, union, depth)
                for branch in schema[union]:
                    yield from self.of(branch, depth + 1)
                return
        names = schema.get("type", "string")
        if "string" in names:
            yield f"({self._bare(schema)})"
        yield from self._scalars(schema, [names] if isinstance(names, str) else names)

    def _resolved(self, schema: Any) -> Any:
        for _ in range(8):
            if schema is True:
                return {}
            if schema is False or "$ref" not in schema:
                return schema
            schema = self._target(schema["$ref"])
        raise bad_request(f"{self._place} has a $ref that leads in a circle.", self._place)

    def _target(self, reference: str) -> Any:
        target: Any = self._root
        for step in reference.lstrip("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        if not isinstance(target, Mapping | bool):
            raise bad_request(f"{self._place} has a $ref that leads nowhere.", self._place)
        return target

    def _check_alone(self, schema: Mapping[str, Any], union: str, depth: int) -> None:
        """Beside alternatives, or several at once, texts would have to be intersected."""
        beside = set(schema) - {union, "type", "$defs", "definitions"}
        if beside or depth > 8 or (union == "allOf" and len(schema[union]) > 1):
            raise bad_request(
                f"{self._place} uses {union} in a way that is not supported for a strict tool's "
                "strings; use anyOf alone.",
                self._place,
            )

    def _literals(self, schema: Mapping[str, Any]) -> Iterator[str]:
        for value in [schema["const"]] if "const" in schema else schema["enum"]:
            if not isinstance(value, str):
                if not isinstance(value, list | Mapping):
                    yield json.dumps(value)
            elif not kinds_of_json(value) & self._others:
                if END_VALUE in value:
                    problem = f"has a value that holds {END_VALUE}"
                    raise bad_request(f"{self._place} {problem}.", self._place)
                yield value

    def _scalars(self, schema: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
        for name in names:
            if name in ("integer", "number"):
                for bound in _NUMBER_BOUNDS & set(schema):
                    raise bad_request(
                        f"{self._place} uses {bound}, which is not supported for a number that may "
                        "be a string instead.",
                        self._place,
                    )
            if name in _SCALARS:
                yield grammar.regex(_SCALARS[name])

    def _bare(self, schema: Mapping[str, Any]) -> str:
        parts = [grammar.without(END_VALUE)]
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        if least or most != "":
            parts.append(grammar.regex(f"(?s:.){{{least},{most}}}"))
        if "pattern" in schema:
            parts.append(grammar.regex(_anchored(schema["pattern"]), ascii_classes=True))
        if "format" in schema:
            parts.append(grammar.regex(self._format(schema["format"])))
        looks = [
            f"[ \\t\\r\\n]*({_OTHER_KINDS[kind]})[ \\t\\r\\n]*" for kind in sorted(self._others)
        ]
        return " & ".join([*parts, *(f"~{grammar.regex(look)}" for look in looks)])

    def _format(self, name: str) -> str:
        if name not in _FORMATS:
            raise bad_request(
                f"{self._place} uses the format {name!r}, which is not supported for a strict "
                f"tool's strings; use one of {', '.join(sorted(_FORMATS))}.",
                self._place,
            )
        return _FORMATS[name]


def _anchored(pattern: str) -> str:
    """A JSON Schema pattern may match anywhere; in Lark a terminal matches all of the text."""
    found = []
    for branch in alternatives(pattern):
        start, end = branch.startswith("^"), branch.endswith("$") and not branch.endswith(r"\$")
        inner = branch[1 if start else 0 : -1 if end else None]
        found.append(f"{'' if start else '(?s:.*)'}(?:{inner}){'' if end else '(?s:.*)'}")
    return "|".join(found)
