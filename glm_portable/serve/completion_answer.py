"""Answers of /v1/completions: plain text, streamed and whole."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from glm_portable.engine.types import Delta
from glm_portable.serve.answer import Answer
from glm_portable.serve.generation import Generation
from glm_portable.serve.logprobs import CompletionLogprobs, Vocabulary, joined


@dataclass
class CompletionChoice:
    """One choice in the making; `logprobs` None if they were not asked for."""

    index: int
    logprobs: CompletionLogprobs | None
    text: list[str] = field(default_factory=list)
    pieces: list[dict[str, list[Any]]] = field(default_factory=list)
    last: Delta = Delta()

    def take(self, delta: Delta) -> None:
        self.last = delta
        self.text.append(delta.text)
        if self.logprobs is not None and delta.logprobs:
            self.pieces.append(self.logprobs.take(delta.logprobs))

    def flush(self) -> dict[str, Any]:
        """The choice with what was taken since the last flush."""
        body = {
            "index": self.index,
            "text": "".join(self.text),
            "logprobs": None if self.logprobs is None else joined(self.pieces),
            "finish_reason": self.last.finish_reason,
            "stop_reason": self.last.stop_reason,
        }
        self.text, self.pieces = [], []
        return body

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
        count: int,
        vocabulary: Vocabulary | None,
        **common: Any,
    ) -> None:
        """`count` choices; with `vocabulary`, logprobs are reported."""
        super().__init__(generation, **common)
        self._choices = [
            CompletionChoice(index, CompletionLogprobs(vocabulary) if vocabulary else None)
            for index in range(count)
        ]

    async def whole(self) -> dict[str, Any]:
        async for _ in self._take():
            pass
        return self.body([choice.flush() for choice in self._choices])

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        async for choice in self._take():
            if choice.worth_a_chunk:
                yield self.chunk([choice.flush()])
        for chunk in self.final_chunks():
            yield chunk

    async def _take(self) -> AsyncIterator[CompletionChoice]:
        async for index, delta in self.generation.deltas():
            self.usage.count(delta, index)
            self._choices[index].take(delta)
            yield self._choices[index]
