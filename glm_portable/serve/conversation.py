"""A conversation and its next turn, for whichever API it came through."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from glm_portable.engine.types import Delta, TokenLogprob, joined
from glm_portable.errors import UsageError
from glm_portable.serve.chat import Prompt
from glm_portable.serve.errors import from_usage_error
from glm_portable.serve.events import Event, ToolCallArguments, ToolCallStart
from glm_portable.serve.generation import Generation, Job
from glm_portable.serve.logprobs import check_prompt_logprobs
from glm_portable.serve.parsing import Parser
from glm_portable.serve.protocol import ChatRequest
from glm_portable.serve.sampling import for_each_choice, sampling_params
from glm_portable.serve.service import Service
from glm_portable.serve.structured.answers import Constrained, Constraint, constrain
from glm_portable.serve.usage import Usage
from glm_portable.tokenizer import Limit


@dataclass
class ChatChoice:
    """One choice in the making.

    prefix: the beginning of the call that the prompt wrote for the model. single_call: the choice
    ends with its first call, whatever the model would still write. reasoning_tokens: of the
    thinking and its tags.
    """

    parser: Parser
    index: int = 0
    prefix: str = ""
    single_call: bool = False
    started: bool = False
    called: bool = False
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    reasoning_tokens: int = 0
    events: list[Event] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)

    def take(self, delta: Delta) -> list[Event]:
        """The events of the next delta; sets finish_reason with the last ones."""
        text = delta.text
        if self.prefix:
            text, self.prefix = self.prefix + text, ""
        thought = self.parser.reasoning
        events = self.parser.feed(text)
        if thought or self.parser.reasoning:
            self.reasoning_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            events += self.parser.finish()
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        if self.parser.called:
            events = list(self._allowed(events))
        if self.called and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return events

    def _allowed(self, events: Iterable[Event]) -> Iterable[Event]:
        for event in events:
            after_call = self.called and not isinstance(event, ToolCallArguments)
            if self.single_call and after_call:
                self.finish_reason, self.stop_reason = "stop", None
                return
            self.called |= isinstance(event, ToolCallStart)
            yield event


@dataclass(frozen=True)
class Conversation:
    """One whose choices are being generated."""

    model: str
    generation: Generation
    choices: Sequence[ChatChoice]
    usage: Usage

    def arrived(self) -> Iterator[tuple[ChatChoice, list[Event], Delta]]:
        """What comes of each delta that is there. Raises ApiError."""
        for index, delta in self.generation.arrived():
            yield self.take(index, delta)

    def take(self, index: int, delta: Delta) -> tuple[ChatChoice, list[Event], Delta]:
        """What comes of a choice's next delta, and what of it the choice has."""
        choice = self.choices[index]
        if not delta.parts:
            return choice, self._take(choice, delta), delta
        events: list[Event] = []
        # Token by token: the thinking may end, or the choice with a call, before the last one.
        for count, part in enumerate(delta.parts, 1):
            events += self._take(choice, part)
            if choice.finish_reason is not None:
                if count < len(delta.parts):
                    delta = joined(delta.parts[:count])
                break
        return choice, events, delta

    def _take(self, choice: ChatChoice, delta: Delta) -> list[Event]:
        known = choice.reasoning_tokens
        events = choice.take(delta)
        self.usage.count(delta, choice.reasoning_tokens - known, first=choice.index == 0)
        if choice.finish_reason is not None:
            self.generation.stop(choice.index)
        return events


async def start(service: Service, request: ChatRequest) -> Conversation:
    """Render the conversation and start its choices. Raises ApiError."""
    model = service.model(request.model)
    prompt = await asyncio.to_thread(render, service, request, service.prompt_limit)
    found = await constrain(
        service.grammars,
        service.tokenizer,
        service.call_format,
        prompt,
        Constraint.of(
            request.format, request.tools or (), request.choice, request.parallel_tool_calls
        ),
    )
    ids = found.prompt.token_ids
    params = replace(sampling_params(request, service.settings.sampling), grammar=found.grammar)
    check_prompt_logprobs(len(ids), request.prompt_logprobs)
    choices = list(for_each_choice(params, request.n or 1))
    choices[1:] = [replace(choice, prompt_logprobs=None) for choice in choices[1:]]
    return Conversation(
        model,
        service.generate([Job(ids, params, **request.scheduling) for params in choices]),
        [_choice(request, found, index) for index in range(len(choices))],
        Usage([prompt.token_ids], reasoning=0),
    )


def render(service: Service, request: ChatRequest, limit: Limit) -> Prompt:
    """The prompt, whose tokens are what a client is told of; the opening of an answer may follow.

    Raises ApiError.
    """
    tools = None if request.choice.mode == "none" else list(request.tools or ())
    options = request.template_options
    if request.choice.forced and not request.asks_to_think:  # the call begins at once
        options = {name: on for name, on in options.items() if name != "thinking"}
        options["enable_thinking"] = False
    try:
        return service.chat.encode(
            request.messages, tools, chat_template_kwargs=options, limit=limit
        )
    except UsageError as error:
        raise from_usage_error(error) from None


def _choice(request: ChatRequest, found: Constrained, index: int) -> ChatChoice:
    tools, prompt = request.tools if request.choice.mode != "none" else None, found.prompt
    return ChatChoice(
        Parser(tools, starts_in_reasoning=prompt.starts_in_reasoning, thinking=prompt.thinking),
        index,
        prefix=found.prefix,
        single_call=request.choice.mode == "named" or request.parallel_tool_calls is False,
    )
