"""Changes of a few logits of each row: biases, tokens that are held back, penalties.

All rows of a step are changed at once, and of each row only the tokens that it is about: an answer
has seen some thousands of the 151,552.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glm_portable.engine.types import SamplingParams


class History:
    """What a request's penalties need to know: which tokens it has seen, and how often it wrote.

    ids: each token of prompt or output once. counts: its occurrences in the output.
    """

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        self.ids = array("q", dict.fromkeys(prompt_ids))
        self.counts = array("f", bytes(4 * len(self.ids)))
        self._place = {token_id: place for place, token_id in enumerate(self.ids)}

    def append(self, token_id: int) -> None:
        place = self._place.setdefault(token_id, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token_id)
            self.counts.append(0)
        self.counts[place] += 1


def add_biases(logits_RV: Tensor, biases: Sequence[Mapping[int, float]]) -> None:
    """Of each row, by token id, in place."""
    if any(biases):
        places = _places(biases, chain.from_iterable(biases), logits_RV.device)
        values = chain.from_iterable(bias.values() for bias in biases)
        logits_RV[places] += _float32(values, logits_RV.device)


def remove(logits_RV: Tensor, ids: Sequence[Sequence[int]]) -> None:
    """Let no row choose any of its ids, in place."""
    if any(ids):
        places = _places(ids, chain.from_iterable(ids), logits_RV.device)
        logits_RV[places] = float("-inf")


def penalize(
    logits_RV: Tensor, histories: Sequence[History | None], params: Sequence[SamplingParams]
) -> None:
    """Repetition (Keskar et al. 2019), then frequency and presence (OpenAI), in place.

    Rows without a history are left alone.
    """
    device = logits_RV.device
    ids = [() if history is None else history.ids for history in histories]
    if not any(ids):
        return
    known = [history for history in histories if history is not None]
    rows_N, ids_N = _places(ids, np.concatenate([history.ids for history in known]), device)
    counts_N = torch.from_numpy(np.concatenate([history.counts for history in known])).to(device)

    def of_each(values: Iterable[float]) -> Tensor:
        return _float32(values, device)[rows_N]

    penalty_N = of_each(p.repetition_penalty for p in params)
    x_N = logits_RV[rows_N, ids_N]
    x_N = torch.where(x_N > 0, x_N / penalty_N, x_N * penalty_N)
    x_N -= of_each(p.frequency_penalty for p in params) * counts_N
    x_N -= of_each(p.presence_penalty for p in params) * (counts_N > 0)
    logits_RV[rows_N, ids_N] = x_N


def _places(
    of_rows: Sequence[Any], ids: Iterable[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows and columns, where row r has as many of the ids as of_rows[r] is long."""
    sizes = list(map(len, of_rows))
    numbers = np.empty((2, sum(sizes)), dtype=np.int64)
    numbers[0] = np.repeat(np.arange(len(sizes)), sizes)
    numbers[1] = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, np.int64)
    rows_N, ids_N = torch.from_numpy(numbers).to(device)
    return rows_N, ids_N


def _float32(values: Iterable[float], device: torch.device) -> Tensor:
    return torch.from_numpy(np.fromiter(values, np.float32)).to(device)
