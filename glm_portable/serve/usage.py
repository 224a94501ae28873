"""Counting the tokens of one answer."""

from collections.abc import Sequence

from glm_portable.engine.types import Delta


class Usage:
    """The tokens of a request: its prompts once each, and everything generated."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._prompt = sum(map(len, prompts))
        self._completion = 0

    def count(self, delta: Delta) -> None:
        self._completion += len(delta.token_ids)

    def body(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
        }
