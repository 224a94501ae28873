"""Answers of /v1/chat/completions, streamed and whole, from the same events."""

import asyncio
from collections.abc import Sequence
from typing import Any

from glm_portable.engine.types import Delta, TokenLogprob
from glm_portable.serve.answer import Answer
from glm_portable.serve.conversation import ChatChoice, Conversation
from glm_portable.serve.events import (
    Content,
    Event,
    Reasoning,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
    fold,
)
from glm_portable.serve.logprobs import Vocabulary, chat_logprobs, prompt_logprobs
from glm_portable.serve.streaming import Chunk


class ChatAnswer(Answer):
    """Puts the deltas of a generation together, into chunks or into one object."""

    whole_object, chunk_object, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(
        self,
        conversation: Conversation,
        vocabulary: Vocabulary,
        *,
        logprobs: bool,
        prompt_logprobs: int | None = None,
        **common: Any,
    ) -> None:
        """prompt_logprobs: alternatives to report beside each token of the prompt."""
        self._conversation, self._choices = conversation, conversation.choices
        model, usage = conversation.model, conversation.usage
        super().__init__(conversation.generation, model=model, usage=usage, **common)
        self._vocabulary, self._logprobs = vocabulary, logprobs
        self._prompt_logprobs = prompt_logprobs

    async def whole(self) -> dict[str, Any]:
        of_prompt: list[TokenLogprob] = []
        while await self.generation.wait():
            for choice, events, delta in self._conversation.arrived():
                choice.events += events
                choice.tokens += delta.logprobs
                of_prompt += delta.prompt_logprobs
        body = self.body([self._whole_choice(*pair) for pair in enumerate(self._choices)])
        count = self._prompt_logprobs
        if count is not None:
            entries = await asyncio.to_thread(prompt_logprobs, of_prompt, count, self._vocabulary)
            body["prompt_logprobs"] = entries
        return body

    def take(self, index: int, delta: Delta) -> Sequence[Chunk]:
        choice, events, delta = self._conversation.take(index, delta)
        choice.tokens += delta.logprobs
        if choice.started and not choice.tokens and choice.finish_reason is None:
            match events:
                case [Content() | Reasoning() as event]:
                    return [self._text(choice, event)]
        chunks = [self._chunk(choice, message) for message in self._messages(choice, events)]
        last = choice.finish_reason is not None
        return [*chunks, self._chunk(choice, {}, last=True)] if last else chunks

    def _text(self, choice: ChatChoice, event: Content | Reasoning) -> Chunk:
        kind = type(event)
        return self.text_chunk(
            (choice.index, kind),
            event.text,
            lambda text: self._chunk(choice, message_delta([kind(text)])),
        )

    def _messages(self, choice: ChatChoice, events: Sequence[Event]) -> list[dict[str, Any]]:
        """The role goes out with the first token, not before: its time is the time to it."""
        opening = [] if choice.started else [{"role": "assistant", "content": ""}]
        choice.started = True
        return opening + ([message_delta(events)] if events else [])

    def _chunk(
        self, choice: ChatChoice, message: dict[str, Any], last: bool = False
    ) -> dict[str, Any]:
        tokens, choice.tokens = choice.tokens, []
        body = {
            "index": choice.index,
            "delta": message,
            "logprobs": self._logprobs_of(tokens) if tokens else None,
            "finish_reason": choice.finish_reason if last else None,
        }
        return self.chunk([body | ({"stop_reason": choice.stop_reason} if last else {})])

    def _whole_choice(self, index: int, choice: ChatChoice) -> dict[str, Any]:
        return {
            "index": index,
            "message": message(choice.events),
            "logprobs": self._logprobs_of(choice.tokens),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _logprobs_of(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": chat_logprobs(tokens, self._vocabulary)} if self._logprobs else None


def message(events: Sequence[Event]) -> dict[str, Any]:
    """The assistant's message; content is null where there is thinking or a call instead of it."""
    parsed = fold(events)
    instead = parsed.reasoning is not None or parsed.tool_calls
    body: dict[str, Any] = {
        "role": "assistant",
        "content": parsed.content if parsed.content is not None or instead else "",
    }
    if parsed.reasoning is not None:
        body["reasoning_content"] = parsed.reasoning
    if parsed.tool_calls:
        body["tool_calls"] = [_call(call) for call in parsed.tool_calls]
    return body


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def message_delta(events: Sequence[Event]) -> dict[str, Any]:
    """What events add to a streamed message; the pieces of one call are one entry."""
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    content = "".join(event.text for event in events if isinstance(event, Content))
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, ToolCallStart):
            opening = _call(ToolCall(event.id, event.name, ""))
            calls[event.index] = {"index": event.index} | opening
        elif isinstance(event, ToolCallArguments):
            blank = {"index": event.index, "function": {"arguments": ""}}
            calls.setdefault(event.index, blank)["function"]["arguments"] += event.text
    fields = {
        "reasoning_content": reasoning,
        "content": content,
        "tool_calls": list(calls.values()),
    }
    return {name: value for name, value in fields.items() if value}
