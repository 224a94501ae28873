"""The request of the Responses API, checked and turned into a chat request."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from glm_portable.serve.converted import Extensions, convert
from glm_portable.serve.described import FORCED_CHOICE, SOME_TOOLS, STRING, rules, where
from glm_portable.serve.fields import MAX_MESSAGES, PositiveCount, Seed
from glm_portable.serve.protocol import ChatRequest, Strict
from glm_portable.serve.responses.history import chat_messages
from glm_portable.serve.responses.schema import CHOICE, INPUT, TOOL
from glm_portable.serve.tools import MAX_TOOLS

_UNSUPPORTED = ("previous_response_id", "conversation", "background", "prompt", "top_logprobs")
_LEFT_OUT: tuple[Any, ...] = (None, False, 0, "", [], {})
_LOGPROBS = "message.output_text.logprobs"

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Metadata = Annotated[dict[str, str], Field(max_length=16)]
Included = Annotated[str, WithJsonSchema(STRING | {"not": {"const": _LOGPROBS}})]


def _input(value: Any) -> str | list[Any]:
    if not isinstance(value, str) and not (isinstance(value, list) and value):
        raise ValueError("should be a string or a list of at least one item")
    if len(value) > MAX_MESSAGES and not isinstance(value, str):
        raise ValueError(f"has {len(value)} items; at most {MAX_MESSAGES} are allowed")
    return value


def _tools(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValueError(f"should be a list of at most {MAX_TOOLS} tools")
    for number, tool in enumerate(value):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else None
            raise ValueError(
                f"[{number}] is of type {str(kind)[:60]!r}; this server knows only functions"
            )
    return value


def _choice(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("type") != "function" or not isinstance(value.get("name"), str):
            raise ValueError("should be none, auto, required or an object that names a function")
        return {"type": "function", "name": value["name"]}
    if value not in (None, "none", "auto", "required"):
        raise ValueError("should be none, auto, required or an object that names a function")
    return value


class Reasoning(Strict):
    """Of the efforts only none means something to GLM; there are no summaries."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextFormat(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                where(type={"enum": ["text", "json_object"]}),
                where(name=STRING, schema={"type": "object"}),
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    format_schema: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check_schema(self) -> "TextFormat":
        if self.type == "json_schema" and (self.format_schema is None or self.name is None):
            raise ValueError("of type json_schema should have a name and a schema")
        return self

    def shown(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, by_alias=True)


class Text(Strict):
    """verbosity is not heeded."""

    format: TextFormat | None = None


class ResponsesRequest(Extensions):
    """POST /v1/responses"""

    model_config = ConfigDict(
        json_schema_extra=rules(
            FORCED_CHOICE | {"not": SOME_TOOLS}, unsupported=_UNSUPPORTED, empty=_LEFT_OUT
        )
    )

    model: str | None = None
    input: Annotated[str | list[Any], PlainValidator(_input), WithJsonSchema(INPUT)]
    instructions: str | None = None
    tools: Annotated[
        list[dict[str, Any]],
        PlainValidator(_tools),
        WithJsonSchema({"type": ["array", "null"], "items": TOOL, "maxItems": MAX_TOOLS}),
    ] = Field(default_factory=list)
    tool_choice: Annotated[Any, PlainValidator(_choice), WithJsonSchema(CHOICE)] = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: PositiveCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    metadata: Metadata | None = None
    stream: bool | None = None
    store: bool | None = None
    include: Annotated[list[Included], Field(max_length=64)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        """Nothing is stored, so there is nothing to go on from or to wait for."""
        for name in _UNSUPPORTED if isinstance(body, Mapping) else ():
            if body.get(name) not in _LEFT_OUT:
                raise ValueError(f"has {name}, which this server does not support; leave it out")
        return body

    @model_validator(mode="after")
    def _check_include(self) -> "ResponsesRequest":
        if _LOGPROBS in (self.include or ()):
            raise ValueError(
                f"asks to include {_LOGPROBS}, which this server does not support; "
                "use /v1/chat/completions"
            )
        return self

    def chat(self) -> ChatRequest:
        """The same request to /v1/chat/completions. Raises ApiError."""
        return convert(self._fields)

    def _fields(self) -> dict[str, Any]:
        choice = self.tool_choice
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": chat_messages(self.instructions, self.input),
            "tools": [_chat_tool(tool) for tool in self.tools] or None,
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            **self.extensions(),
        }
        if self.text is not None and self.text.format is not None:
            fields["own_format"] = ("text.format", self.text.format.shown())
        return fields

    def shown(self) -> dict[str, Any]:
        """What of it every answer repeats."""
        format_ = self.text.format.shown() if self.text and self.text.format else {"type": "text"}
        return {
            "background": False,
            "conversation": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": self.reasoning.model_dump() if self.reasoning else None,
            "store": False,
            "temperature": self.temperature,
            "text": {"format": format_},
            "tool_choice": self.tool_choice or ("auto" if self.tools else "none"),
            "tools": [{name: tool.get(name) for name in _SHOWN} for tool in self.tools],
            "top_p": self.top_p,
            "truncation": "disabled",
        }


_SHOWN = ("type", "name", "description", "parameters", "strict")


def _chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in kept if tool.get(name) is not None}
    return {"type": "function", "function": function}
