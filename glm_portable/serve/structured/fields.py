"""The request fields that ask for a format, as /openapi.json describes them.

What they hold is checked by `formats`, and once more by whoever compiles it: a text that is JSON,
a regular expression or a grammar is more than a schema can ask for.
"""

from typing import Annotated, Any

from pydantic import WithJsonSchema

from glm_portable.serve.described import (
    BOOLEAN_OR_NULL,
    JSON_TEXT,
    NULL,
    UNREAD,
    any_of,
    list_of,
    record,
    two_of,
    typed,
    where,
)
from glm_portable.serve.structured.formats import (
    EMPTY,
    FIELDS,
    MAX_CHOICES,
    MAX_GRAMMAR,
    STRUCTURED_OUTPUTS,
    Kind,
)
from glm_portable.serve.structured.schema import MAX_PATTERN

_VALUES: dict[Kind, dict[str, Any]] = {
    "json_schema": any_of({"type": "object"}, JSON_TEXT | {"minLength": 1}, {"const": True}),
    "regex": {"type": "string", "minLength": 1, "maxLength": MAX_PATTERN},
    "choice": list_of({"type": "string", "minLength": 1}, minItems=1, maxItems=MAX_CHOICES),
    "grammar": {"type": "string", "minLength": 1, "maxLength": MAX_GRAMMAR},
}
_FIELDS = {kind: any_of({"enum": list(EMPTY[kind])}, value) for kind, value in _VALUES.items()}
SchemaFormat = Annotated[Any, WithJsonSchema(_FIELDS["json_schema"])]
PatternFormat = Annotated[Any, WithJsonSchema(_FIELDS["regex"])]
ChoiceFormat = Annotated[Any, WithJsonSchema(_FIELDS["choice"])]
GrammarFormat = Annotated[Any, WithJsonSchema(_FIELDS["grammar"])]

_OUTPUTS_GIVEN = {name: _VALUES[kind] for name, kind in STRUCTURED_OUTPUTS.items()}
_OUTPUTS_GIVEN["json_object"] = {"const": True}
_OUTPUTS = {name: _FIELDS[kind] for name, kind in STRUCTURED_OUTPUTS.items()}
_OUTPUTS |= {"json_object": BOOLEAN_OR_NULL, "structural_tag": NULL}
StructuredOutputs = Annotated[
    Any,
    WithJsonSchema(any_of(NULL, record(**_OUTPUTS) | {"not": any_of(*two_of(_OUTPUTS_GIVEN))})),
]

_SCHEMA = {"strict": BOOLEAN_OR_NULL, "schema": any_of(NULL, *_VALUES["json_schema"]["anyOf"])}
_OWN_KEY = typed(
    "json_schema", "json_schema", json_schema=record(name=UNREAD, description=UNREAD, **_SCHEMA)
)
_BESIDE = typed("json_schema", **_SCHEMA) | {"not": {"required": ["json_schema"]}}
_PLAIN = record(["type"], type={"enum": ["text", "json_object"]})
ResponseFormat = Annotated[Any, WithJsonSchema(any_of(NULL, _PLAIN, _OWN_KEY, _BESIDE))]

TWO_FORMATS = two_of(
    {name: _VALUES[kind] for name, kind in FIELDS.items()}
    | {
        "structured_outputs": any_of(*(where(**{n: v}) for n, v in _OUTPUTS_GIVEN.items()))
        | {"type": "object"},
        "response_format": where(type={"enum": ["json_object", "json_schema"]})
        | {"type": "object"},
    }
)
"""Requests that ask for two formats, which are refused."""
