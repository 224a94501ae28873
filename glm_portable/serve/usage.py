"""Counting the tokens of one answer."""

from collections.abc import Sequence
from typing import Any

from glm_portable.engine.types import Delta


class Usage:
    """The tokens of a request: its prompts once each, and everything generated.

    choices: how many each prompt has; what was cached of it is that of its first one.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], choices: int = 1) -> None:
        self._prompt, self._choices = sum(map(len, prompts)), choices
        self._completion = self._cached = 0

    def count(self, delta: Delta, index: int = 0) -> None:
        """Take the next delta of a choice."""
        self._completion += len(delta.token_ids)
        if index % self._choices == 0:
            self._cached += delta.num_cached_tokens or 0

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }
