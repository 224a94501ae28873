"""The requests of the OpenAI API, checked.

Unknown fields are ignored, as every server of this API does, but a field that would change the
answer and is not implemented is refused by name.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from glm_portable.serve.described import FORCED_CHOICE, SOME_TOOLS, rules, where
from glm_portable.serve.fields import (
    MAX_PROMPTS,
    WHOLE,
    Biases,
    CacheSalt,
    Choices,
    Count,
    Integer,
    LogprobCount,
    Messages,
    PositiveCount,
    Priority,
    Prompts,
    Seed,
    Stops,
    TemplateOptions,
    TokenId,
)
from glm_portable.serve.structured.fields import (
    TWO_FORMATS,
    ChoiceFormat,
    GrammarFormat,
    PatternFormat,
    ResponseFormat,
    SchemaFormat,
    StructuredOutputs,
)
from glm_portable.serve.structured.formats import FORMAT_FIELDS, Format, format_of
from glm_portable.serve.tools import Choice, ToolChoice, Tools

_UNSUPPORTED = (
    *("audio", "suffix", "prompt_embeds", "use_beam_search"),
    *("bad_words", "allowed_token_ids", "logits_processors", "include_stop_str_in_output"),
    *("functions", "documents", "mm_processor_kwargs", "return_token_ids"),
    *("continue_final_message", "chat_template", "truncate_prompt_tokens", "stop_regex"),
    *("thinking_token_budget", "return_tokens_as_token_ids", "lora_path", "custom_logit_processor"),
)
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_LEFT_OUT = (*_EMPTY, False)
"""What an unsupported field may hold: nothing that would change the answer."""


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Request(Strict):
    """What both endpoints take. None, or a field left out, means the server's default."""

    model: str | None = None
    n: Choices | None = None
    best_of: Integer | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveCount | None = None
    min_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Biases = None
    seed: Seed | None = None
    stop: Stops = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: LogprobCount | None = None
    priority: Priority | None = None
    cache_salt: CacheSalt | None = None
    response_format: ResponseFormat = None
    structured_outputs: StructuredOutputs = None
    guided_json: SchemaFormat = None
    guided_regex: PatternFormat = None
    guided_choice: ChoiceFormat = None
    guided_grammar: GrammarFormat = None
    json_schema: SchemaFormat = None
    regex: PatternFormat = None
    ebnf: GrammarFormat = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        if isinstance(body, Mapping):
            for name in _UNSUPPORTED:
                value = body.get(name)
                if value is not False and value not in _EMPTY:
                    raise ValueError(
                        f"has {name}, which this version does not support; leave it out"
                    )
        return body

    @model_validator(mode="after")
    def _check_best_of(self) -> "Request":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("has a best_of other than n, which this version does not support")
        return self

    @model_validator(mode="after")
    def _check_prompt_logprobs(self) -> "Request":
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("has prompt_logprobs with stream, but chunks have no place for them")
        return self

    @model_validator(mode="after")
    def _check_min_tokens(self) -> "Request":
        limit = self.output_limit
        if limit is not None and (self.min_tokens or 0) > limit:
            raise ValueError(f"has a min_tokens of {self.min_tokens}, but at most {limit} tokens")
        return self

    @model_validator(mode="after")
    def _check_format(self) -> "Request":
        assert self.format is None or self.format.field
        return self

    @cached_property
    def format(self) -> Format | None:
        """What the answer must be. Raises ApiError."""
        return format_of({name: getattr(self, name) for name in FORMAT_FIELDS})

    @property
    def output_limit(self) -> int | None:
        """The most tokens of an answer; None: as many as the window has."""
        return self.max_tokens

    @property
    def scheduling(self) -> dict[str, Any]:
        """What a `Job` takes beside the prompt and the sampling."""
        return {"priority": self.priority or 0, "cache_salt": self.cache_salt or ""}

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )


class Thinking(Strict):
    """The thinking switch as Z.ai's own API has it. clear_thinking: of earlier turns (GLM-4.7)."""

    type: Literal["enabled", "disabled"] = "enabled"
    clear_thinking: bool | None = None


# What /openapi.json says of the checks that look at several fields.
_NEVER = (*TWO_FORMATS, where(stream={"const": True}, prompt_logprobs={"type": "integer"}))
_NEVER_IN_CHAT = (
    where(top_logprobs={"type": "integer", "minimum": 1})
    | {"not": where(logprobs={"const": True})},
    FORCED_CHOICE | {"not": SOME_TOOLS},
)


class ChatRequest(Request):
    """POST /v1/chat/completions"""

    model_config = ConfigDict(
        json_schema_extra=rules(*_NEVER, *_NEVER_IN_CHAT, unsupported=_UNSUPPORTED, empty=_LEFT_OUT)
    )

    messages: Messages
    max_completion_tokens: PositiveCount | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    tools: Tools = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: str | None = None
    thinking: Thinking | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("has top_logprobs without logprobs; set logprobs to true")
        names = {tool["function"]["name"] for tool in self.tools or ()}
        choice = self.tool_choice
        if choice and choice.forced and not names:
            raise ValueError("has a tool_choice that needs tools, but no tools")
        if choice and choice.name is not None and choice.name not in names:
            raise ValueError(f"has tool_choice {choice.name!r}, which is not one of its tools")
        return self

    @property
    def choice(self) -> Choice:
        """What tool_choice says, or means when it is left out."""
        return self.tool_choice or Choice("auto" if self.tools else "none")

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompt_logprob_count(self) -> int | None:
        return self.prompt_logprobs

    @property
    def template_options(self) -> dict[str, Any]:
        """Thinking may be switched in three ways; chat_template_kwargs wins."""
        options: dict[str, Any] = {}
        if self.add_generation_prompt is not None:
            options["add_generation_prompt"] = self.add_generation_prompt
        if self.reasoning_effort == "none":
            options["enable_thinking"] = False
        if self.thinking is not None:
            options["enable_thinking"] = self.thinking.type == "enabled"
            options["clear_thinking"] = self.thinking.clear_thinking
        given = self.chat_template_kwargs or {}
        if given.get("thinking") is not None:  # another name of enable_thinking
            options.pop("enable_thinking", None)
        return options | {name: value for name, value in given.items() if value is not None}

    @property
    def asks_to_think(self) -> bool:
        """Whether the request itself turns thinking on, which is the templates' default."""
        options = self.template_options
        return options.get("enable_thinking", options.get("thinking")) is True


class CompletionRequest(Request):
    """POST /v1/completions"""

    model_config = ConfigDict(
        json_schema_extra=rules(*_NEVER, unsupported=_UNSUPPORTED, empty=_LEFT_OUT)
    )

    prompt: Prompts
    max_tokens: Count | None = None
    logprobs: LogprobCount | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _check_choices(self) -> "CompletionRequest":
        if len(self.prompt) * (self.n or 1) > MAX_PROMPTS:
            raise ValueError(f"asks for more than {MAX_PROMPTS} completions (prompts times n)")
        return self

    @property
    def output_limit(self) -> int:
        """The API's default for this endpoint is 16 tokens. The engine generates at least one."""
        return 16 if self.max_tokens is None else max(1, self.max_tokens)

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs

    @property
    def prompt_logprob_count(self) -> int | None:
        """Alternatives for the tokens of the prompt, which `echo` reports like generated ones."""
        counts = (self.logprobs if self.echo else None), self.prompt_logprobs
        return max((count for count in counts if count is not None), default=None)
