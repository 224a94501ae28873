"""Log probabilities under the model's own distribution: of sampled tokens and of the prompt's."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from glm_portable.engine.types import TokenLogprob

_ROWS = 128
"""Positions whose logits are there at once: 128 x 151,552 are 78 MB in float32."""


def token_logprobs(
    logits_RV: Tensor, token_R: Tensor, counts: Sequence[int], vocab_size: int, ranks: bool = False
) -> list[TokenLogprob]:
    """Of each row's token, and of as many of the most probable tokens as `counts` says."""
    logprobs_RV = logits_RV.float().log_softmax(dim=-1)
    # Both come from the same tensor: clients find a greedy token by comparing floats.
    chosen_R1 = logprobs_RV.gather(1, token_R[:, None])
    above_R = (logprobs_RV > chosen_R1).sum(-1).tolist() if ranks else []
    ids, values = _largest(logprobs_RV[:, :vocab_size], counts)
    return [
        TokenLogprob(
            token_id,
            chosen,
            tuple(zip(ids[row], values[row], strict=True)),
            above_R[row] + 1 if ranks else None,
        )
        for row, (token_id, chosen) in enumerate(
            zip(token_R.tolist(), chosen_R1[:, 0].tolist(), strict=True)
        )
    ]


def _largest(x_RV: Tensor, counts: Sequence[int]) -> tuple[list[list[int]], list[list[float]]]:
    """Places and values of as many of each row's largest numbers as `counts` says.

    Rows are searched for equal counts apart: which of equal numbers come first depends on it.
    """
    ids: list[list[int]] = [[] for _ in counts]
    values: list[list[float]] = [[] for _ in counts]
    for count in set(counts):
        rows = [row for row, asked in enumerate(counts) if asked == count]
        found = x_RV[rows].topk(min(count, x_RV.shape[1]), dim=-1)
        for row, numbers, places in zip(rows, *map(Tensor.tolist, found), strict=True):
            ids[row], values[row] = places, numbers
    return ids, values


class PromptLogprobs:
    """Of one prompt's tokens from the second on, gathered while the prompt is read.

    It may be read in chunks, and after a preemption again; `found` grows in order of position.
    """

    def __init__(self, prompt_ids: Sequence[int], count: int, vocab_size: int) -> None:
        """`count` alternatives beside each token."""
        self._ids, self._count, self._vocab_size = list(prompt_ids), count, vocab_size
        self.found: list[TokenLogprob] = []

    @classmethod
    def of(cls, prompt_ids: Sequence[int], count: int | None, vocab_size: int) -> Self | None:
        """None where they are not asked for."""
        return None if count is None else cls(prompt_ids, count, vocab_size)

    def take(self, logits: Callable[[Tensor], Tensor], hidden_TD: Tensor, start: int) -> None:
        """The hidden states of the positions from `start` on; those known already are skipped."""
        first, end = len(self.found), min(start + len(hidden_TD), len(self._ids) - 1)
        if start > first:
            raise AssertionError(f"{start=} leaves out positions from {first} on")
        for position in range(first, end, _ROWS):
            until = min(position + _ROWS, end)
            logits_RV = logits(hidden_TD[position - start : until - start])
            token_R = torch.tensor(self._ids[position + 1 : until + 1], device=logits_RV.device)
            counts = [self._count] * len(token_R)
            self.found += token_logprobs(logits_RV, token_R, counts, self._vocab_size, ranks=True)

    @property
    def usable(self) -> bool:
        """Whether the model returned numbers."""
        return all(entry.logprob == entry.logprob for entry in self.found)
