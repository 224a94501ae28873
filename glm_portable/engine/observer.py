"""What the engine tells an onlooker about its work: times and counts; torch-free.

An observer is called on the engine's thread between computations, several times a step: it must be
quick and must not raise.
"""

from collections.abc import Sequence
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

    def on_tokens(self, first: Sequence[float], following: Sequence[float]) -> None:
        """What a step brought, in seconds: for each request that has its first token, how long
        after its arrival; for each that has one more, or several at once, how long after the last.
        """

    def on_finish(self, request: FinishedRequest) -> None:
        """A request has ended, for whatever reason."""


class NullObserver:
    """Sees nothing."""

    def on_step(self, num_tokens: int) -> None:
        pass

    def on_tokens(self, first: Sequence[float], following: Sequence[float]) -> None:
        pass

    def on_finish(self, request: FinishedRequest) -> None:
        pass
