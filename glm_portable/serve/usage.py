"""Counting the tokens of one answer."""

from collections.abc import Sequence
from typing import Any

from glm_portable.engine.types import Delta


class Usage:
    """The tokens of a request: its prompts once each, and everything generated.

    reasoning: of the completion's tokens those of the thinking; None where nobody looks for it.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], reasoning: int | None = None) -> None:
        self.prompt, self.completion, self.reasoning = sum(map(len, prompts)), 0, reasoning

    def count(self, delta: Delta, reasoning: int = 0) -> None:
        self.completion += len(delta.token_ids)
        if self.reasoning is not None:
            self.reasoning += reasoning

    def body(self) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }
        if self.reasoning is not None:
            counts["completion_tokens_details"] = {"reasoning_tokens": self.reasoning}
        return counts
