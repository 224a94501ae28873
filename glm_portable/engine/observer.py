"""What the engine tells an onlooker about its work: times and counts; torch-free.

An observer is called on the engine's thread between computations, for every token: it must be
quick and must not raise.
"""

from dataclasses import dataclass
from typing import Protocol

from glm_portable.engine.types import FinishReason, Timeline


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A request that has ended.

    num_cached: tokens of its prompt that were found in the cache. max_tokens: what it asked for,
    None for no limit of its own.
    """

    request_id: str
    reason: FinishReason
    num_prompt_tokens: int
    num_cached: int
    num_generated: int
    max_tokens: int | None
    timeline: Timeline


class Observer(Protocol):
    """Sees the engine's work as it happens."""

    def on_step(self, num_tokens: int) -> None:
        """A step computed that many tokens."""

    def on_first_token(self, seconds: float) -> None:
        """A request has its first token, that long after its arrival."""

    def on_next_tokens(self, seconds: float) -> None:
        """A request has one token more, or several at once, that long after the one before."""

    def on_finish(self, request: FinishedRequest) -> None:
        """A request has ended, for whatever reason."""


class NullObserver:
    """Sees nothing."""

    def on_step(self, num_tokens: int) -> None:
        pass

    def on_first_token(self, seconds: float) -> None:
        pass

    def on_next_tokens(self, seconds: float) -> None:
        pass

    def on_finish(self, request: FinishedRequest) -> None:
        pass


def note_tokens(observer: Observer, timeline: Timeline, now: float) -> None:
    """Tokens have just come: enter them into the request's timeline and tell the observer."""
    if timeline.last_token is None:
        timeline.first_token = now
        observer.on_first_token(now - timeline.arrived)
    else:
        observer.on_next_tokens(now - timeline.last_token)
    timeline.last_token = now
