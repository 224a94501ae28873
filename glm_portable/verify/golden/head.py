"""Logits in blocks of the vocabulary: the likeliest tokens, and the mass of all others."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.ops import Weight
from glm_portable.verify.golden.fingerprint import project
from glm_portable.verify.golden.record import LOGITS

TOP = 64


@dataclass(frozen=True)
class Summary:
    """ids_TN: the likeliest tokens or those asked for; logprobs_TN float64; tail_T: all others'
    mass. projected_TW: of the logits. best_T: the likeliest token, whatever was asked for."""

    ids_TN: Tensor
    logprobs_TN: Tensor
    tail_T: Tensor
    projected_TW: Tensor
    best_T: Tensor

    @property
    def margin_T(self) -> Tensor:
        """How far the likeliest is ahead of the second, in logprobs."""
        return self.logprobs_TN[:, 0] - self.logprobs_TN[:, 1]


def summarise(
    blocks: Iterable[tuple[int, Tensor]], vocabulary: int, wanted: Tensor | None = None
) -> Summary:
    """blocks: (first token, logits (T, some)) of the whole vocabulary. wanted: (T, N) token ids
    whose logprobs are taken instead of the likeliest."""
    found = _Blocks(vocabulary, wanted)
    for begin, block in blocks:
        found.add(begin, block.cpu().double())
    return found.summary()


class _Blocks:
    """What is known of the logits after some blocks of them."""

    def __init__(self, vocabulary: int, wanted: Tensor | None) -> None:
        self._vocabulary, self._wanted = vocabulary, wanted
        self._parts: list[Tensor] = []
        self._totals: list[Tensor] = []
        self._values = self._ids = self._asked = torch.empty(0)

    def add(self, begin: int, logits_TV: Tensor) -> None:
        self._parts.append(project(logits_TV, LOGITS, begin, self._vocabulary))
        self._totals.append(logits_TV.logsumexp(-1))
        values, ids = logits_TV.topk(min(TOP, logits_TV.shape[1]), dim=-1)
        ids = ids + begin
        if self._ids.numel():
            values, ids = torch.cat([self._values, values], -1), torch.cat([self._ids, ids], -1)
            values, order = values.topk(min(TOP, values.shape[1]), dim=-1)
            ids = ids.gather(1, order)
        self._values, self._ids = values, ids
        if self._wanted is not None:
            self._ask(begin, logits_TV)

    def _ask(self, begin: int, logits_TV: Tensor) -> None:
        assert self._wanted is not None
        at, width = self._wanted - begin, logits_TV.shape[1]
        here = logits_TV.gather(1, at.clamp(0, width - 1))
        inside = (at >= 0) & (at < width)
        self._asked = torch.where(inside, here, self._asked) if self._asked.numel() else here

    def summary(self) -> Summary:
        ids, values = (
            (self._ids, self._values) if self._wanted is None else (self._wanted, self._asked)
        )
        total_T = torch.stack(self._totals).logsumexp(0)
        logprobs = values - total_T.unsqueeze(1)
        tail = (1 - logprobs.exp().sum(-1)).clamp(min=0)
        projected = torch.stack(self._parts).sum(0)
        return Summary(ids, logprobs, tail, projected, self._ids[:, 0])


def of_blocks(
    hidden_TD: Tensor,
    weights: Iterable[tuple[int, Weight]],
    vocabulary: int,
    wanted: Tensor | None = None,
) -> Summary:
    """Of hidden states through the reference's head."""
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    blocks = ((begin, reference.linear(hidden_TD, w).to(wide)) for begin, w in weights)
    return summarise(blocks, vocabulary, wanted)


def kl(ours: Summary, logprobs_TN: Tensor, tail_T: Tensor) -> Tensor:
    """(T,) divergence of ours from the exact top and tail: that of all tokens, or a little less."""
    p, lp = logprobs_TN.double().exp(), logprobs_TN.double()
    top = (p * (lp - ours.logprobs_TN)).sum(-1)
    tiny = 1e-30
    tail = tail_T.double()
    rest = tail * ((tail + tiny).log() - (ours.tail_T + tiny).log())
    return (top + rest).clamp(min=0)
