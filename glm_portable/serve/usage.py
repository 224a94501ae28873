"""Counting the tokens of one answer."""

from collections.abc import Sequence
from typing import Any

from glm_portable.engine.types import Delta


class Usage:
    """The tokens of a request: its prompts once each, and everything generated.

    cached: of the prompt's tokens those found in the prefix cache. reasoning: of the completion's
    those of the thinking; None where nobody looks for it.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], reasoning: int | None = None) -> None:
        self.prompt, self.completion, self.reasoning = sum(map(len, prompts)), 0, reasoning
        self.cached = 0

    def count(self, delta: Delta, reasoning: int = 0, first: bool = True) -> None:
        """`first`: of the choices of its prompt; the others find its whole prompt in the cache."""
        self.completion += len(delta.token_ids)
        if first and delta.num_cached_tokens:
            self.cached = min(self.prompt, self.cached + delta.num_cached_tokens)
        if self.reasoning is not None:
            self.reasoning += reasoning

    def body(self) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }
        if self.reasoning is not None:
            counts["completion_tokens_details"] = {"reasoning_tokens": self.reasoning}
        return counts
