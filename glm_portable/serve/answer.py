"""What both kinds of answer have in common: their frame and the token count."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from glm_portable.engine.types import Delta
from glm_portable.serve.generation import Generation
from glm_portable.serve.streaming import Chunk, EventStream, TextEvent
from glm_portable.serve.usage import Usage


class Answer(ABC):
    """An answer under way; read it once, as chunks or as a whole.

    include_usage: a last chunk carries the token count (`usage` is null in the others).
    continuous_usage: every chunk carries the count so far.
    """

    whole_object: str
    chunk_object: str
    id_prefix: str
    stream = EventStream

    def __init__(
        self,
        generation: Generation,
        *,
        model: str,
        usage: Usage,
        include_usage: bool = False,
        continuous_usage: bool = False,
    ) -> None:
        self.generation, self.usage = generation, usage
        self._model, self._created = model, int(time.time())
        self._id = f"{self.id_prefix}-{secrets.token_hex(16)}"
        self._include_usage, self._continuous_usage = include_usage, continuous_usage
        self._text_events: dict[Hashable, TextEvent] = {}

    @abstractmethod
    async def whole(self) -> dict[str, Any]:
        """The answer as one object, when it is complete. Raises ApiError."""

    def opening(self) -> Iterable[Chunk]:
        return ()

    @abstractmethod
    def take(self, index: int, delta: Delta) -> Iterable[Chunk]:
        """What comes of a choice's next delta."""

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._frame(self.whole_object, choices) | {"usage": self.usage.body()}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = self._frame(self.chunk_object, choices)
        if self._include_usage:
            frame["usage"] = self.usage.body() if self._continuous_usage else None
        return frame

    def text_chunk(
        self, kind: Hashable, text: str, chunk: Callable[[str], dict[str, Any]]
    ) -> Chunk:
        """What `chunk` makes of the text; of each kind it makes the same but for the text."""
        if self._continuous_usage:
            return chunk(text)
        event = self._text_events.get(kind)
        if event is None:
            event = self._text_events[kind] = TextEvent(chunk)
        return event.of(text)

    def ending(self) -> Iterator[dict[str, Any]]:
        """After the last choice: the count, if it was asked for."""
        if self._include_usage:
            yield self.chunk([]) | {"usage": self.usage.body()}

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
