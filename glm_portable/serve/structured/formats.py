"""The fields by which clients of OpenAI, vLLM and SGLang ask for a format, as one thing."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glm_portable.engine import grammar
from glm_portable.engine.grammar import GrammarError
from glm_portable.serve.errors import ApiError, bad_request, brief
from glm_portable.serve.structured.schema import check_size, checked, pattern_problem

MAX_GRAMMAR = 64 * 1024
MAX_CHOICES = 4_096

Kind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True)
class Format:
    """What an answer must be. value: the schema, pattern, choices or grammar.

    field: where the request has it, for errors. strict: of a json_schema.
    """

    kind: Kind
    field: str
    value: Any = None
    strict: bool = False


# vLLM's names, and SGLang's.
FIELDS: dict[str, Kind] = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf": "grammar",
}
STRUCTURED_OUTPUTS: dict[str, Kind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
FORMAT_FIELDS = ("response_format", "structured_outputs", *FIELDS)

EMPTY: dict[Kind, tuple[Any, ...]] = {
    "json_schema": (None, ""),
    "regex": (None, ""),
    "choice": (None, []),
    "grammar": (None, ""),
}
"""What a field may hold that asks for nothing, as of forms that send all their fields."""


def format_of(body: Mapping[str, Any]) -> Format | None:
    """The format that a request's fields ask for. Raises ApiError for a wrong or a second one."""
    found = _formats(body, FIELDS)
    if body.get("structured_outputs") is not None:
        found += _structured_outputs(body["structured_outputs"])
    if body.get("response_format") is not None:
        found += _response_format(body["response_format"], "response_format")
    if len(found) > 1:
        names = " and ".join(format.field for format in found)
        raise bad_request(f"The request has {names}; give one of them.", found[1].field)
    return found[0] if found else None


def text_format(value: Any, field: str = "text.format") -> Format | None:
    """The format that the Responses API has in text.format. Raises ApiError."""
    found = _response_format(value, field)
    return found[0] if found else None


def _formats(body: Mapping[str, Any], kinds: Mapping[str, Kind], place: str = "") -> list[Format]:
    """Of the fields that ask for something."""
    found = [
        Format(kind, f"{place}{name}", body[name])
        for name, kind in kinds.items()
        if body.get(name) not in EMPTY[kind]
    ]
    for format in found:
        check_value(format)
    return found


def check_value(format: Format) -> None:
    """Whether the value is what a format of its kind can be made of. Raises ApiError."""
    value = format.value
    match format.kind:
        case "json_schema" if value is not True and not isinstance(value, Mapping | str):
            raise _error(format, "should be a JSON Schema, which is an object")
        case "regex" if (problem := pattern_problem(value)) is not None:
            raise _error(format, problem)
        case "choice" if not _are_choices(value):
            raise _error(
                format, f"should be a list of 1 to {MAX_CHOICES} strings that are not empty"
            )
        case "grammar" if not isinstance(value, str) or len(value) > MAX_GRAMMAR:
            raise _error(
                format, f"should be a grammar of at most {MAX_GRAMMAR} characters in a string"
            )


def _are_choices(value: Any) -> bool:
    listed = isinstance(value, list) and 1 <= len(value) <= MAX_CHOICES
    return listed and all(isinstance(choice, str) and choice for choice in value)


def _response_format(value: Any, field: str) -> list[Format]:
    kind = value.get("type") if isinstance(value, Mapping) else None
    match kind:
        case "text":
            return []
        case "json_object":
            return [Format("json_object", field)]
        case "json_schema":
            return [_json_schema(value, field)]
        case "structural_tag":
            raise bad_request(f"{field} of type structural_tag is not supported.", field)
    raise bad_request(
        f"{field} should be an object of type text, json_object or json_schema.", field
    )


def _json_schema(value: Mapping[str, Any], field: str) -> Format:
    """As in chat, under a key of its own; in the Responses API beside the type."""
    inner = value.get("json_schema", value)
    place = f"{field}.json_schema" if "json_schema" in value else field
    if not isinstance(inner, Mapping):
        raise bad_request(f"{place} should be an object with a name and a schema.", place)
    strict = inner.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise bad_request(f"{place}.strict should be true or false, not {brief(strict)}.", place)
    schema = inner.get("schema")
    if schema is None:  # any object will do, as at OpenAI
        schema = {"type": "object"}
    format = Format("json_schema", f"{place}.schema", schema, bool(strict))
    check_value(format)
    return format


def _structured_outputs(value: Any) -> list[Format]:
    field = "structured_outputs"
    if not isinstance(value, Mapping):
        raise bad_request(f"{field} should be an object.", field)
    if value.get("structural_tag") is not None:
        raise bad_request(f"{field}.structural_tag is not supported.", field)
    found = _formats(value, STRUCTURED_OUTPUTS, f"{field}.")
    wanted = value.get("json_object")
    if not isinstance(wanted, bool | None):
        raise bad_request(f"{field}.json_object should be true or false.", field)
    return found + ([Format("json_object", f"{field}.json_object")] if wanted else [])


def lark(format: Format, from_gbnf: Callable[[str], str]) -> str:
    """The format as a grammar of its own. Raises ApiError with the field's name.

    from_gbnf: GBNF as Lark; raises GrammarError.
    """
    match format.kind:
        case "json_object":
            return f"start: {grammar.json_value({'type': 'object'})}"
        case "json_schema":
            return f"start: {grammar.json_value(_schema(format))}"
        case "regex":
            return f"start: {grammar.regex(format.value)}"
        case "choice":
            return f"start: CHOICE\nCHOICE: {_alternatives(format)}"
        case "grammar":
            return _grammar(format, from_gbnf)


def _schema(format: Format) -> dict[str, Any]:
    """SGLang and older clients send a schema as JSON in a string."""
    schema = format.value
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise _error(format, "should be a JSON Schema, and is not valid JSON") from None
        if not isinstance(schema, Mapping) and schema is not True:
            raise _error(format, "should be a JSON Schema, and is the JSON of something else")
    return checked(schema, format.field, format.strict)


def _alternatives(format: Format) -> str:
    check_size(format.value, format.field)
    return " | ".join(map(grammar.literal, format.value))


_STRINGS_AND_COMMENTS = re.compile(
    r'"(?:\\.|[^"\\\n])*"i?|/(?!/)(?:\\.|[^/\\\n])+/[a-z]*|(?://|#).*'
)
_REFUSED = re.compile(r"[<~&@=]|%(?!ignore\b|import\b)\w*|::")


def _grammar(format: Format, from_gbnf: Callable[[str], str]) -> str:
    """Lark as it is, or GBNF (`root ::= ...`) turned into it."""
    text: str = format.value
    if "::=" in text:
        try:
            text = from_gbnf(text)
        except GrammarError as error:
            raise _error(format, str(error)) from None
    elif not re.search(r"^\s*start\s*:", text, re.MULTILINE):
        raise _error(format, "should define root (GBNF, `root ::= ...`) or start (Lark)")
    extra = _REFUSED.search(_STRINGS_AND_COMMENTS.sub('""', text))
    if extra:
        raise _error(format, f"uses {extra.group()!r}, which is not supported in grammars here")
    return text


def _error(format: Format, problem: str) -> ApiError:
    return bad_request(f"{format.field} {problem}.", format.field, "invalid_value")
