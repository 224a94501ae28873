"""JSON Schemas from outside: checked, and cut down to what is enforced.

A keyword that restricts values and cannot be enforced is refused by name, never ignored. Keywords
that JSON Schema does not know are notes to it, and left out; a strict schema may not have any.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from glm_portable.serve.errors import ApiError, bad_request, brief

MAX_DEPTH = 48
MAX_VALUES = 20_000
MAX_CHARACTERS = 256 * 1024
MAX_COUNT = 1_000_000
MAX_PATTERN = 4_096
MAX_REPEATS = 20_000
FORMATS = frozenset(
    "date-time time date duration email hostname ipv4 ipv6 uuid uri".split(),
)
TYPES = frozenset("string number integer boolean null object array".split())

_NOTES = frozenset(
    "$schema $id $comment title description default example examples deprecated readOnly "
    "writeOnly contentEncoding contentMediaType contentSchema".split()
)
_UNSUPPORTED = frozenset(
    "not if then else dependentRequired dependentSchemas dependencies contains minContains "
    "maxContains uniqueItems propertyNames unevaluatedItems unevaluatedProperties additionalItems "
    "$dynamicRef $recursiveRef $anchor $dynamicAnchor $recursiveAnchor $vocabulary nullable".split()
)


def checked(schema: Any, field: str, strict: bool = False) -> dict[str, Any]:
    """The schema without notes. field: where it stands in the request, for ApiError (400)."""
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise bad_request(f"{field} should be a JSON Schema, which is an object.", field)
    check_size(schema, field)
    kept: dict[str, Any] = _Checker(field, strict).schema(schema, "")
    return kept


def check_size(value: Any, field: str) -> None:
    """Raises ApiError for a JSON value that is too large; does not recurse."""
    level, values, characters = [value], 0, 0
    for _ in range(MAX_DEPTH):
        values += len(level)
        characters += sum(len(text) for text in level if isinstance(text, str))
        lists = [item for item in level if isinstance(item, list)]
        objects = [item for item in level if isinstance(item, Mapping)]
        level = [item for items in lists for item in items]
        level += [item for items in objects for pair in items.items() for item in pair]
        if values + len(level) > MAX_VALUES or characters > MAX_CHARACTERS:
            raise bad_request(
                f"{field} is too large: at most {MAX_VALUES} values and {MAX_CHARACTERS} "
                "characters are allowed.",
                field,
            )
        if not level:
            return
    raise bad_request(f"{field} is nested more than {MAX_DEPTH} deep.", field)


def pattern_problem(pattern: Any) -> str | None:
    """Why a regular expression is refused before anything tries to compile it."""
    if not isinstance(pattern, str):
        return "should be a regular expression in a string"
    if len(pattern) > MAX_PATTERN:
        return f"has {len(pattern)} characters; at most {MAX_PATTERN} are allowed"
    if _repeats(pattern) > MAX_REPEATS:
        return f"repeats more than {MAX_REPEATS} times, counting what it repeats within repeats"
    return None


_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}|.", re.DOTALL)


def _repeats(pattern: str) -> int:
    """How many characters the pattern has once its repeated groups are written out.

    A repeated single character, which is cheap at any count, counts only within a repeated group.
    """
    groups: list[list[int]] = [[0, 0]]  # of each open one: the count, and with every repeat
    last = [0, 0]
    for found in _TOKEN.finditer(pattern):
        if found.lastindex:
            times = max(1, *(int(number[:9]) for number in found.groups() if number))
            last = [1 if last == [1, 1] else last[1] * times, last[1] * times]
            continue
        if found.group() in ("*", "+", "?"):
            continue
        groups[-1] = [groups[-1][0] + last[0], groups[-1][1] + last[1]]
        last = [1, 1]
        if found.group() == "(":
            groups.append([0, 0])
            last = [0, 0]
        elif found.group() == ")" and len(groups) > 1:
            last = groups.pop()
    return groups[0][0] + last[0] if len(groups) == 1 else sum(count for count, _ in groups)


def alternatives(pattern: str) -> list[str]:
    """The branches of a regular expression's outermost `|`."""
    branches, depth = [""], 0
    for found in _TOKEN.finditer(pattern):
        text = found.group()
        depth += (text == "(") - (text == ")")
        if text == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += text
    return branches


class _Checker:
    """Goes through one schema and copies what is enforced."""

    def __init__(self, field: str, strict: bool) -> None:
        self._field, self._strict = field, strict
        checks: dict[Callable[[Any, str], Any], str] = {
            self._type: "type",
            self._enum: "enum",
            self._any: "const",
            self._schemas: "properties $defs definitions",
            self._pattern_schemas: "patternProperties",
            self.schema: "additionalProperties items",
            self._list: "prefixItems anyOf oneOf allOf",
            self._names: "required",
            self._count: "minLength maxLength minItems maxItems minProperties maxProperties",
            self._number: "minimum maximum exclusiveMinimum exclusiveMaximum",
            self._divisor: "multipleOf",
            self._pattern: "pattern",
            self._text: "format",
            self._ref: "$ref",
        }
        self._checks = {word: check for check, words in checks.items() for word in words.split()}

    def schema(self, schema: Any, where: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._error(where, "should be a schema: an object, true or false")
        kept = {}
        for keyword, value in schema.items():
            check = self._checks.get(keyword)
            if check is not None:
                kept[keyword] = check(value, f"{where}.{keyword}")
            elif keyword in _UNSUPPORTED and value is not False:
                raise self._error(where, f"uses {keyword}, which is not supported")
            elif keyword not in _NOTES | _UNSUPPORTED and self._strict:
                raise self._error(
                    where, f"has {keyword[:60]!r}, which is no keyword, and is strict"
                )
        return self._formatted(kept, where)

    def _formatted(self, kept: dict[str, Any], where: str) -> dict[str, Any]:
        """Of anything but a string, a format says no more than the type."""
        names = kept.get("type", "string")
        if "string" not in names:
            kept.pop("format", None)
        if kept.get("format", "date") not in FORMATS:
            problem = f"uses the format {kept['format'][:60]!r}, which is not supported"
            raise self._error(where, f"{problem}; use one of {', '.join(sorted(FORMATS))}")
        return kept

    def _error(self, where: str, problem: str) -> ApiError:
        place = f"{self._field}{where}"
        return bad_request(f"{place[:300]} {problem}.", self._field, "invalid_value")

    def _any(self, value: Any, where: str) -> Any:
        return value

    def _type(self, value: Any, where: str) -> Any:
        names = [value] if isinstance(value, str) else value
        known = isinstance(names, list) and all(
            isinstance(name, str) and name in TYPES for name in names
        )
        if not known or not names:
            raise self._error(where, f"should be of {', '.join(sorted(TYPES))}, not {brief(value)}")
        return value

    def _enum(self, value: Any, where: str) -> Any:
        if not isinstance(value, list) or not value:
            raise self._error(where, "should be a list of at least one value")
        return value

    def _schemas(self, value: Any, where: str) -> Any:
        if not isinstance(value, Mapping):
            raise self._error(where, "should be an object of schemas")
        return {name: self.schema(item, f"{where}.{name}") for name, item in value.items()}

    def _pattern_schemas(self, value: Any, where: str) -> Any:
        schemas = self._schemas(value, where)
        for pattern in schemas:
            self._pattern(pattern, f"{where}.{pattern}")
        return schemas

    def _list(self, value: Any, where: str) -> Any:
        if not isinstance(value, list) or not value:
            raise self._error(where, "should be a list of at least one schema")
        return [self.schema(item, f"{where}[{index}]") for index, item in enumerate(value)]

    def _names(self, value: Any, where: str) -> Any:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._error(where, "should be a list of names")
        return value

    def _count(self, value: Any, where: str) -> Any:
        if not _is_number(value) or value != int(value) or not 0 <= value <= MAX_COUNT:
            raise self._error(where, f"should be an integer from 0 to {MAX_COUNT}")
        return int(value)

    def _number(self, value: Any, where: str) -> Any:
        if not _is_number(value) or abs(value) > 2**53:
            raise self._error(where, "should be a finite number of at most 2^53")
        return value

    def _divisor(self, value: Any, where: str) -> Any:
        if not _is_number(value) or not 1e-6 <= value <= 10_000:
            raise self._error(where, "should be a number from 0.000001 to 10000")
        return value

    def _pattern(self, value: Any, where: str) -> Any:
        problem = pattern_problem(value)
        if problem is not None:
            raise self._error(where, problem)
        return value

    def _text(self, value: Any, where: str) -> Any:
        if not isinstance(value, str):
            raise self._error(where, "should be a string")
        return value

    def _ref(self, value: Any, where: str) -> Any:
        if not isinstance(value, str) or not value.startswith("#"):
            raise self._error(where, "should point into the schema itself, as in #/$defs/name")
        return value


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
