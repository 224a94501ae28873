"""Answers of /v1/completions: plain text, streamed and whole."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from glm_portable.engine.types import Delta
from glm_portable.serve.answer import Answer
from glm_portable.serve.generation import Generation
from glm_portable.serve.logprobs import CompletionLogprobs, Vocabulary, joined, prompt_logprobs
from glm_portable.serve.streaming import Chunk


@dataclass(frozen=True)
class RawPrompt:
    """A prompt as it came, or its ids, and what they say."""

    ids: Sequence[int]
    text: str


@dataclass(frozen=True)
class Reported:
    """What of the prompt and of the answer a request wants to see.

    logprobs, prompt_logprobs: alternatives beside each token, None for no log probabilities; the
    second is vLLM's field, OpenAI's own way is `echo` with logprobs. answer False: max_tokens is 0,
    so the one token that the engine generates at least is left out.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    answer: bool = True


@dataclass
class CompletionChoice:
    """One choice in the making. plain: until it ends, nothing but text is new in it."""

    index: int
    prompt: RawPrompt
    reported: Reported
    vocabulary: Vocabulary
    text: list[str] = field(default_factory=list)
    pieces: list[dict[str, list[Any]]] = field(default_factory=list)
    of_prompt: dict[str, Any] = field(default_factory=dict)
    last: Delta = Delta()
    begun: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        self.logprobs = CompletionLogprobs(self.vocabulary)

    def take(self, delta: Delta) -> None:
        if not self.begun:
            self.begun = True
            self.plain = self.reported.answer and self.reported.logprobs is None
            self._take_prompt(delta)
        if not self.reported.answer:
            self.last = replace(delta, finish_reason="length", stop_reason=None)
            return
        self.last = delta
        self.text.append(delta.text)
        if self.reported.logprobs is not None and delta.logprobs:
            self.pieces.append(self.logprobs.take(delta.logprobs))

    def _take_prompt(self, delta: Delta) -> None:
        reported, tokens = self.reported, delta.prompt_logprobs
        if reported.echo:
            self.text.append(self.prompt.text)
            if reported.logprobs is not None:
                piece = self.logprobs.prompt(self.prompt.ids, tokens, reported.logprobs)
                self.pieces.append(piece)
        if reported.prompt_logprobs is not None:
            entries = prompt_logprobs(tokens, reported.prompt_logprobs, self.vocabulary)
            self.of_prompt = {"prompt_logprobs": entries}

    def flush(self) -> dict[str, Any]:
        """The choice with what was taken since the last flush."""
        text, self.text = "".join(self.text), []
        return self.with_text(text)

    def with_text(self, text: str) -> dict[str, Any]:
        body = {
            "index": self.index,
            "text": text,
            "logprobs": None if self.reported.logprobs is None else joined(self.pieces),
            "finish_reason": self.last.finish_reason,
            "stop_reason": self.last.stop_reason,
        }
        self.pieces = []
        return body | self.of_prompt

    @property
    def worth_a_chunk(self) -> bool:
        return any(self.text) or bool(self.pieces) or self.last.finish_reason is not None


class CompletionAnswer(Answer):
    """Puts the deltas of a generation together, into chunks or into one object."""

    whole_object = chunk_object = "text_completion"
    id_prefix = "cmpl"

    def __init__(
        self,
        generation: Generation,
        prompts: Sequence[RawPrompt],
        reported: Reported,
        vocabulary: Vocabulary,
        **common: Any,
    ) -> None:
        """`prompts`: that of each choice."""
        super().__init__(generation, **common)
        self._choices = [
            CompletionChoice(index, prompt, reported, vocabulary)
            for index, prompt in enumerate(prompts)
        ]
        self._counts = reported.answer

    async def whole(self) -> dict[str, Any]:
        while await self.generation.wait():
            for index, delta in self.generation.arrived():
                if delta.prompt_logprobs:  # of up to a whole window
                    await asyncio.to_thread(self._take, index, delta)
                else:
                    self._take(index, delta)
        return self.body([choice.flush() for choice in self._choices])

    def take(self, index: int, delta: Delta) -> Sequence[Chunk]:
        choice = self._choices[index]
        if choice.plain and delta.finish_reason is None:
            self.usage.count(delta)
            return [self._text(choice, delta.text)] if delta.text else ()
        self._take(index, delta)
        return [self.chunk([choice.flush()])] if choice.worth_a_chunk else ()

    def _text(self, choice: CompletionChoice, text: str) -> Chunk:
        return self.text_chunk(
            choice.index, text, lambda text: self.chunk([choice.with_text(text)])
        )

    def _take(self, index: int, delta: Delta) -> None:
        choice = self._choices[index]
        if self._counts:
            same_prompt = index > 0 and self._choices[index - 1].prompt is choice.prompt
            self.usage.count(delta, first=not same_prompt)
        choice.take(delta)
