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
_FIELDS: dict[str, Kind] = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf": "grammar",
}
_STRUCTURED_OUTPUTS: dict[str, Kind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}


FORMAT_FIELDS = ("response_format", "structured_outputs", *_FIELDS)


def format_of(body: Mapping[str, Any]) -> Format | None:
    """The format that a request's fields ask for. Raises ApiError for a wrong or a second one."""
    found = [Format(kind, name, body[name]) for name, kind in _FIELDS.items() if _given(body, name)]
    if _given(body, "structured_outputs"):
        found += _structured_outputs(body["structured_outputs"])
    if _given(body, "response_format"):
        found += _response_format(body["response_format"], "response_format")
    if len(found) > 1:
        names = " and ".join(format.field for format in found)
        raise bad_request(f"The request has {names}; give one of them.", found[1].field)
    return found[0] if found else None


def text_format(value: Any, field: str = "text.format") -> Format | None:
    """The format that the Responses API has in text.format. Raises ApiError."""
    found = _response_format(value, field)
    return found[0] if found else None


def _given(body: Mapping[str, Any], name: str) -> bool:
    return body.get(name) not in (None, "", [])


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
    # Without a schema any object will do, as at OpenAI; vLLM's users also write "schema_".
    schema = inner.get("schema", {"type": "object"})
    return Format("json_schema", f"{place}.schema", schema, bool(strict))


def _structured_outputs(value: Any) -> list[Format]:
    field = "structured_outputs"
    if not isinstance(value, Mapping):
        raise bad_request(f"{field} should be an object.", field)
    if value.get("structural_tag") is not None:
        raise bad_request(f"{field}.structural_tag is not supported.", field)
    found = [
        Format(kind, f"{field}.{name}", value[name])
        for name, kind in _STRUCTURED_OUTPUTS.items()
        if _given(value, name)
    ]
    return found + (
        [Format("json_object", f"{field}.json_object")] if value.get("json_object") else []
    )


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
            return f"start: {grammar.regex(_pattern(format))}"
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
    return checked(schema, format.field, format.strict)


def _pattern(format: Format) -> str:
    problem = pattern_problem(format.value)
    if problem is not None:
        raise _error(format, problem)
    return str(format.value)


def _alternatives(format: Format) -> str:
    choices = format.value
    fine = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not fine or len(choices) > MAX_CHOICES:
        raise _error(format, f"should be a list of 1 to {MAX_CHOICES} strings that are not empty")
    check_size(choices, format.field)
    return " | ".join(map(grammar.literal, choices))


_STRINGS_AND_COMMENTS = re.compile(
    r'"(?:\\.|[^"\\\n])*"i?|/(?!/)(?:\\.|[^/\\\n])+/[a-z]*|(?://|#).*'
)
_REFUSED = re.compile(r"[<~&@=]|%(?!ignore\b|import\b)\w*|::")


def _grammar(format: Format, from_gbnf: Callable[[str], str]) -> str:
    """Lark as it is, or GBNF (`root ::= ...`) turned into it."""
    text = format.value
    if not isinstance(text, str) or len(text) > MAX_GRAMMAR:
        raise _error(format, f"should be a grammar of at most {MAX_GRAMMAR} characters in a string")
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
