"""Counting the tokens of one answer."""

from collections.abc import Sequence
from typing import Any

from glm_portable.engine.types import Delta


class Usage:
    """The tokens of a request: its prompts once each, and everything generated.

    reasoning: of the completion's tokens those of the thinking; None where nobody looks for it.
    choices: how many each prompt has; what was found of it in the cache is told of its first one.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], reasoning: int | None = None, choices: int = 1
    ) -> None:
        self.prompt, self.completion, self.reasoning = sum(map(len, prompts)), 0, reasoning
        self.cached, self._choices = 0, choices

    def count(self, delta: Delta, reasoning: int = 0, choice: int = 0) -> None:
        """Take the next delta of a choice; reasoning: how many of its tokens are thinking."""
        self.completion += len(delta.token_ids)
        if choice % self._choices == 0:
            self.cached += delta.num_cached_tokens or 0
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
