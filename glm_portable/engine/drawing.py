"""A token drawn for each row, at its temperature and after its filters.

Every filter keeps tokens by their value and so keeps all that tie with the last one kept: what a
filter keeps does not depend on how a backend orders equal values.

A draw inverts the cumulative distribution at one number in [0, 1) that is a hash of the request's
seed and of the token's position in the answer. It is the same on every device, after a
preemption, and whatever else is in the batch.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from struct import Struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glm_portable.engine.types import SamplingParams

_CANDIDATES = 256
"""How many of the largest probabilities top_p looks at first."""

_COLDEST = torch.finfo(torch.float32).tiny
"""The least temperature to divide by."""

_KEY = Struct("<QQ")


def column(values: Sequence[float] | np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """One number a row: (R, 1) float32."""
    # By way of numpy, which reads a list several times faster.
    return torch.from_numpy(np.asarray(values, dtype=np.float32)[:, None]).to(device)


def uniform(keys: Iterable[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """Numbers in [0, 1), float32: for each seed and position one that depends on these alone.

    Any two are independent. With 23 bits its product with a float32 total stays below the total, so
    that the search for it always ends at a token of positive probability.
    """
    packed = [_KEY.pack(seed % 2**64, position) for seed, position in keys]
    digests = [blake2b(key, digest_size=8).digest() for key in packed]
    return (np.frombuffer(b"".join(digests), dtype="<u8") >> 41).astype(np.float32) / 2**23


class Rows:
    """Some rows of a tensor, or all of them (the usual case), which are then not copied."""

    def __init__(self, rows: Sequence[int], total: int, device: torch.device) -> None:
        whole = len(rows) == total
        self._index_R = None if whole else torch.tensor(rows, dtype=torch.int64, device=device)

    def take(self, x_RV: Tensor) -> Tensor:
        """A copy of them, or x itself."""
        return x_RV if self._index_R is None else x_RV[self._index_R]

    def put(self, x_RV: Tensor, values_RV: Tensor) -> None:
        """Write back what `take` returned and was changed in place."""
        if self._index_R is not None:
            x_RV[self._index_R] = values_RV


class Filters:
    """What the parameters of rows come to, on their device: the same in every step they are in.

    width: how many tokens there are to choose from.
    """

    def __init__(self, params: Sequence[SamplingParams], width: int, device: torch.device) -> None:
        def some(rows: Sequence[int]) -> Rows:
            return Rows(rows, len(params), device)

        self._temperature_R1 = column([max(p.temperature, _COLDEST) for p in params], device)
        min_p = [p.min_p for p in params]
        self._least_R1 = column(min_p, device).log() if any(min_p) else None
        limited = [row for row, p in enumerate(params) if 0 < p.top_k < width]
        last = [params[row].top_k - 1 for row in limited]
        self._top_k, self._most = some(limited), max(last, default=-1) + 1
        self._last_R1 = torch.tensor(last, dtype=torch.int64, device=device)[:, None]
        limited = [row for row, p in enumerate(params) if p.top_p < 1]
        self._top_p, self._reaching = some(limited), bool(limited)
        self._top_p_R1 = column([params[row].top_p for row in limited], device)

    def draw(self, logits_RV: Tensor, points_R1: Tensor) -> Tensor:
        """A token for each row at a number in [0, 1): (R,) int64."""
        # Subtracting the largest first keeps a tiny temperature from overflowing.
        scaled_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
        scaled_RV /= self._temperature_R1
        if self._least_R1 is not None:
            keep_min_p(scaled_RV, self._least_R1)
        if self._most:
            rows_RV = self._top_k.take(scaled_RV)
            keep_top_k(rows_RV, self._last_R1, self._most)
            self._top_k.put(scaled_RV, rows_RV)
        probs_RV = scaled_RV.softmax(dim=-1)
        if self._reaching:
            rows_RV = self._top_p.take(probs_RV)
            keep_top_p(rows_RV, self._top_p_R1)
            self._top_p.put(probs_RV, rows_RV)
        cumulative_RV = probs_RV.cumsum(dim=-1)
        target_R1 = points_R1 * cumulative_RV[:, -1:]
        token_R = torch.searchsorted(cumulative_RV, target_R1, right=True)[:, 0]
        return token_R.clamp(max=logits_RV.shape[1] - 1)  # beyond the end only in a row of NaN


def keep_min_p(scaled_RV: Tensor, least_R1: Tensor) -> None:
    """Remove, in place, tokens less probable than min_p times the most probable one.

    scaled_RV: logits whose largest is 0 in every row. least_R1: the logarithm of min_p.
    """
    scaled_RV.masked_fill_(scaled_RV < least_R1, float("-inf"))


def keep_top_k(logits_RV: Tensor, last_R1: Tensor, most: int) -> None:
    """Remove, in place, tokens below the k-th largest. last_R1: k - 1. most: the largest k."""
    largest_RK = logits_RV.topk(most, dim=-1).values
    logits_RV.masked_fill_(logits_RV < largest_RK.gather(1, last_R1), float("-inf"))


def keep_top_p(probs_RV: Tensor, top_p_R1: Tensor) -> None:
    """Zero, in place, all but the most probable tokens that together reach top_p."""
    probs_RV.masked_fill_(probs_RV < least_kept(probs_RV, top_p_R1), 0.0)


def least_kept(probs_RV: Tensor, top_p_R1: Tensor) -> Tensor:
    """The smallest of the largest probabilities that together reach top_p: (R, 1).

    Few tokens do so in almost every row, and sorting all of them takes longer than the rest of
    sampling; so it looks at ever more of the largest.
    """
    count = _CANDIDATES
    while True:
        count = min(count, probs_RV.shape[1])
        largest_RK = probs_RV.topk(count, dim=-1).values
        sums_RK = largest_RK.cumsum(dim=-1)
        if count == probs_RV.shape[1] or bool((sums_RK[:, -1:] >= top_p_R1).all()):
            last_R1 = (sums_RK < top_p_R1).sum(-1, keepdim=True).clamp(max=count - 1)
            return largest_RK.gather(1, last_R1)
        count *= 8
