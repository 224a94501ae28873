"""The requests of Anthropic's Messages API, checked and turned into chat requests."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema

from glm_portable.serve.anthropic.history import chat_messages
from glm_portable.serve.anthropic.schema import CHOICE, FORCED_CHOICE, MESSAGE, SYSTEM, TOOL
from glm_portable.serve.converted import Extensions, convert
from glm_portable.serve.described import SOME_TOOLS, list_of, rules
from glm_portable.serve.fields import MAX_MESSAGES, WHOLE, PositiveCount, Stops
from glm_portable.serve.protocol import ChatRequest, Strict
from glm_portable.serve.tools import MAX_TOOLS

Messages = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_MESSAGES),
    WithJsonSchema(list_of(MESSAGE, minItems=1, maxItems=MAX_MESSAGES)),
]


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """As a chat has them. A type of their own have tools that run at Anthropic's."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValueError(f"should be a list of at most {MAX_TOOLS} tools")
    return [_tool(tool, f"[{number}]") for number, tool in enumerate(value)]


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise ValueError(f"{where} should be an object with a name and an input_schema")
    if tool.get("type") not in (None, "custom"):
        kind = str(tool["type"])[:60]
        raise ValueError(f"{where} is of type {kind!r}; this server knows only tools of yours")
    if not isinstance(tool.get("input_schema"), dict):
        raise ValueError(f"{where}.input_schema should be an object, the schema of its input")
    function = {name: tool[name] for name in ("name", "description", "strict") if name in tool}
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def _choice(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("type") not in ("auto", "any", "tool", "none"):
        raise ValueError("should be an object of type auto, any, tool or none")
    if value["type"] == "tool" and not isinstance(value.get("name"), str):
        raise ValueError("of type tool should have a name, a string")
    if not isinstance(value.get("disable_parallel_tool_use"), bool | None):
        raise ValueError("should have true or false as disable_parallel_tool_use")
    return value


def _no_servers(value: Any) -> Any:
    if value not in (None, []):
        raise ValueError("is not supported: this server calls no others; leave it out")
    return value


class MessagesThinking(Strict):
    """budget_tokens, display and whatever else are not heeded."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class OutputFormat(Strict):
    type: Literal["json_schema"]
    format_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """effort is not heeded."""

    format: OutputFormat | None = None


class CountTokensRequest(Extensions):
    """POST /v1/messages/count_tokens"""

    model_config = ConfigDict(json_schema_extra=rules(FORCED_CHOICE | {"not": SOME_TOOLS}))

    model: str | None = None
    messages: Messages
    system: Annotated[Any, WithJsonSchema(SYSTEM)] = None
    tools: Annotated[
        list[dict[str, Any]] | None,
        PlainValidator(_tools),
        WithJsonSchema({"type": ["array", "null"], "items": TOOL, "maxItems": MAX_TOOLS}),
    ] = None
    tool_choice: Annotated[
        dict[str, Any] | None, PlainValidator(_choice), WithJsonSchema(CHOICE)
    ] = None
    thinking: MessagesThinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: Annotated[
        Any, PlainValidator(_no_servers), WithJsonSchema({"enum": [None, []]})
    ] = None

    def chat(self) -> ChatRequest:
        """The same request to /v1/chat/completions. Raises ApiError."""
        return convert(self._fields)

    def _fields(self) -> dict[str, Any]:
        """Without `thinking` there is none, as in Anthropic's API."""
        thinks = self.thinking is not None and self.thinking.type != "disabled"
        choice = self.tool_choice or {}
        single = choice.get("disable_parallel_tool_use")
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": chat_messages(self.system, self.messages),
            "tools": self.tools,
            "tool_choice": _chat_choice(choice),
            "parallel_tool_calls": None if single is None else not single,
            "thinking": {"type": "enabled" if thinks else "disabled"},
            **self.extensions(),
        }
        if self.output_config is not None and self.output_config.format is not None:
            given = self.output_config.format.model_dump(by_alias=True)
            fields["own_format"] = ("output_config.format", given)
        return fields


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages"""

    max_tokens: PositiveCount
    stream: bool | None = None
    stop_sequences: Stops = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), WHOLE] | None = None
    cache_control: Any = None

    def _fields(self) -> dict[str, Any]:
        return super()._fields() | {
            "max_tokens": self.max_tokens,
            "stop": None if self.stop_sequences is None else list(self.stop_sequences),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }

    @property
    def caches(self) -> bool:
        """Whether the client marked a prefix to be cached, and so wants to know of its hits."""
        return bool(self.cache_control) or any(_marks(self.system, self.messages))


def _marks(system: Any, messages: Iterable[Any]) -> Iterable[bool]:
    contents = [system, *(message.get("content") for message in messages)]
    blocks = (block for content in contents if isinstance(content, list) for block in content)
    return (bool(block.get("cache_control")) for block in blocks if isinstance(block, Mapping))


def _chat_choice(choice: Mapping[str, Any]) -> Any:
    match choice.get("type"):
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": choice["name"]}}
        case word:
            return word
