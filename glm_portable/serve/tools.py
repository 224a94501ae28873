"""The `tools` and `tool_choice` of a request."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainValidator, WithJsonSchema

from glm_portable.serve.described import (
    BOOLEAN_OR_NULL,
    NAME,
    STRING_OR_NULL,
    any_of,
    record,
)

MAX_TOOLS = 512


@dataclass(frozen=True)
class Choice:
    """A tool_choice; `name` for mode "named" alone."""

    mode: Literal["none", "auto", "required", "named"]
    name: str | None = None

    @property
    def forced(self) -> bool:
        return self.mode in ("required", "named")


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise ValueError(f"{what} should be a string of 1 to 128 characters")
    if any(character.isspace() or character in "<>" for character in value):
        raise ValueError(f"{what} holds whitespace, < or >, which GLM's call format cannot carry")
    return value


_KINDS: dict[str, tuple[type, str]] = {
    "description": (str, "a string"),
    "parameters": (dict, "an object"),
    "strict": (bool, "true or false"),
}


def _tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    """The tools as they came: the template prints them, key order and unknown keys included."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValueError(f"should be a list of at most {MAX_TOOLS} tools")
    for index, tool in enumerate(value):
        _check_tool(tool, f"[{index}]")
    return tuple(value)


def _check_tool(tool: Any, where: str) -> None:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise ValueError(f"{where} should be an object with type 'function' and a function")
    _name(function.get("name"), f"{where}.function.name")
    for key, (kind, called) in _KINDS.items():
        if not isinstance(function.get(key), kind | None):
            raise ValueError(f"{where}.function.{key} should be {called}")


def _choice(value: Any) -> Choice | None:
    if value is None or isinstance(value, str):
        return _choice_by_word(value)
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type") != "function":
        raise ValueError(
            "should be none, auto, required or an object with type 'function' and a function's name"
        )
    return Choice("named", _name(function.get("name"), "function.name"))


def _choice_by_word(value: str | None) -> Choice | None:
    match value:
        case None:
            return None
        case "none" | "auto" | "required":
            return Choice(value)
    raise ValueError("should be none, auto, required or the object that names a function")


_FUNCTION = record(
    ["name"],
    name=NAME,
    description=STRING_OR_NULL,
    parameters={"type": ["object", "null"]},
    strict=BOOLEAN_OR_NULL,
)
_TOOL = record(["function"], type={"const": "function"}, function=_FUNCTION)
_NAMED = record(
    ["type", "function"], type={"const": "function"}, function=record(["name"], name=NAME)
)
_WORDS = {"enum": ["none", "auto", "required", None]}

Tools = Annotated[
    tuple[dict[str, Any], ...] | None,
    PlainValidator(_tools),
    WithJsonSchema({"type": ["array", "null"], "items": _TOOL, "maxItems": MAX_TOOLS}),
]
ToolChoice = Annotated[
    Choice | None,
    PlainValidator(_choice),
    WithJsonSchema(any_of(_WORDS, _NAMED)),
]
