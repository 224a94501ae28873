"""From logits to the next token of each row; rows are independent of each other.

The order is vLLM's: logit_bias and min_tokens, penalties, the grammar's mask, temperature, min_p,
top_k, top_p. Every filter keeps tokens by their value and so keeps all that tie with the last one
kept: what a filter keeps does not depend on how a backend orders equal values.

A draw inverts the cumulative distribution at one number in [0, 1) that is a hash of the request's
seed and of the token's position in the answer. It is the same on every device, after a
preemption, and whatever else is in the batch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct

import numpy as np
import torch
from torch import Tensor

from glm_portable.engine import grammar
from glm_portable.engine.grammar import GrammarState, Words
from glm_portable.engine.logprobs import token_logprobs
from glm_portable.engine.types import SamplingParams, TokenLogprob

_CANDIDATES = 256
"""How many of the largest probabilities top_p looks at first."""

_COLDEST = torch.finfo(torch.float32).tiny
"""The least temperature to divide by."""

_KEY = Struct("<QQ")


class History:
    """What a request's penalties need to know: which tokens it has seen, and how often it wrote.

    seen_V: bool, in prompt or output. counts_V: float32, occurrences in the output.
    """

    def __init__(self, prompt_ids: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.seen_V[torch.tensor(prompt_ids, dtype=torch.int64, device=device)] = True
        self.counts_V = torch.zeros(vocab_size, device=device)

    def append(self, token_id: int) -> None:
        self.seen_V[token_id] = True
        self.counts_V[token_id] += 1

    def penalize(self, logits_V: Tensor, params: SamplingParams) -> None:
        """Repetition (Keskar et al. 2019), then frequency and presence (OpenAI), in place."""
        penalty = params.repetition_penalty
        repeated_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        logits_V.copy_(torch.where(self.seen_V, repeated_V, logits_V))
        logits_V -= params.frequency_penalty * self.counts_V
        logits_V -= params.presence_penalty * (self.counts_V > 0)


class RowSampler:
    """One request's parameters and its progress, kept from its first token to its last.

    stop_ids: the tokens that would end it, held back until min_tokens have been generated.
    vocab_size: how many tokens there are to choose from.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        stop_ids: Iterable[int],
        prompt_ids: Iterable[int],
        vocab_size: int,
    ) -> None:
        self.params, self.seed, self.num_generated = params, seed, 0
        self._stop_ids, self._vocab_size = sorted(stop_ids), vocab_size
        penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        self._penalizes = penalties != (1, 0, 0)
        # Asked for every token, so that what never changes is told once.
        self._always_adjusts = bool(
            self._penalizes or params.logit_bias or params.grammar is not None
        )
        self._held_until = params.min_tokens if self._stop_ids else 0
        self._prompt_ids = tuple(prompt_ids) if self._penalizes else ()
        # Made when first needed: a request that waits should not take the vocabulary's size.
        self._history: History | None = None
        self.state: GrammarState | None = None if params.grammar is None else params.grammar.start()

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` or a mask has anything to do for the next token."""
        return self._always_adjusts or self.num_generated < self._held_until

    @property
    def _holds(self) -> bool:
        return self.num_generated < self._held_until

    def hold(self, words_W: Words) -> None:
        """Take the tokens that end the answer out of a mask that leaves others."""
        ids = self._stop_ids if self._holds else []
        if self.params.ignore_eos and self.state is not None:
            ids = [*ids, *self.state.vocabulary.table.eos_ids]
        if ids:
            rest_W = words_W.copy()
            for token_id in ids:
                rest_W[token_id // 32] &= ~np.uint32(1 << token_id % 32)
            if rest_W.any():
                words_W[:] = rest_W

    def adjust(self, logits_V: Tensor) -> None:
        """Apply bias, min_tokens and penalties in place."""
        device = logits_V.device
        if self.params.logit_bias:
            ids = torch.tensor(list(self.params.logit_bias), device=device)
            bias = torch.tensor(list(self.params.logit_bias.values()), device=device)
            logits_V[ids] += bias.to(logits_V.dtype)
        if self._holds and self.state is None:
            logits_V[torch.tensor(self._stop_ids, device=device)] = float("-inf")
        if self._penalizes:
            if self._history is None:
                self._history = History(self._prompt_ids, self._vocab_size, device)
            self._history.penalize(logits_V, self.params)

    @property
    def complete(self) -> bool:
        """Whether the grammar leaves nothing more to write."""
        return self.state is not None and self.state.complete

    def ended_by(self, token_id: int) -> bool:
        """Whether the grammar allowed this token as the end of the text."""
        return self.state is not None and token_id in self.state.vocabulary.table.eos_ids

    def append(self, token_id: int) -> None:
        """The token that was chosen."""
        self.num_generated += 1
        if self._history is not None:
            self._history.append(token_id)
        if self.state is not None:
            self.state.append(token_id)


@dataclass(slots=True)
class Sampled:
    """A row's next token, and its log probability if the request asked for it.

    token_id is None where there is none to choose: error says why.
    """

    token_id: int | None
    logprob: TokenLogprob | None = None
    error: str = "The model returned no finite logits for this request."


def sample(
    logits_RV: Tensor,
    rows: Sequence[RowSampler],
    vocab_size: int,
    ahead: Sequence[int] | None = None,
) -> list[Sampled]:
    """Choose a token for each row.

    logits_RV: of the model, float32 or wider; rows of the vocabulary from vocab_size on are ones
    that no token has, and are never chosen nor reported. ahead: how many tokens lie between what a
    row's request has and the token to choose, where any do; such a row must not adjust its logits.
    """
    choices_RV = logits_RV[:, :vocab_size].float()
    adjusted = any([row.adjusts for row in rows])  # a list: a generator is slower
    if adjusted:
        choices_RV = choices_RV.clone()  # .float() may have copied nothing
        for logits_V, row in zip(choices_RV, rows, strict=True):
            if row.adjusts:
                row.adjust(logits_V)
        mask(choices_RV, rows)
    best_R, token_R = choices_RV.max(dim=-1)
    drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    ahead = ahead or [0] * len(rows)
    if len(drawn) == len(rows):
        token_R = draw(choices_RV, rows, ahead)
    elif drawn:
        token_R[drawn] = draw(
            choices_RV[drawn], [rows[index] for index in drawn], [ahead[index] for index in drawn]
        )
    reported = logprobs(logits_RV, rows, token_R, vocab_size)
    # NaN counts as the largest value, so the best one tells about the whole row.
    found = [
        Sampled(token_id, reported.get(index)) if math.isfinite(best) else Sampled(None)
        for index, (token_id, best) in enumerate(
            zip(token_R.tolist(), best_R.tolist(), strict=True)
        )
    ]
    if adjusted:
        for index, row in enumerate(rows):
            if row.state is not None and row.state.failure is not None:
                found[index] = Sampled(None, error=row.state.failure)
    return found


def mask(choices_RV: Tensor, rows: Sequence[RowSampler]) -> None:
    """Remove, in place, the tokens that a row's grammar does not allow next.

    On a chip the host computes the masks while the model's step still runs there.
    """
    masked = [index for index, row in enumerate(rows) if row.state is not None]
    if not masked:
        return
    vocab_size = choices_RV.shape[1]
    words_RW = np.zeros((len(masked), -(-vocab_size // 32)), dtype=np.uint32)
    grammar.fill([state for row in rows if (state := row.state) is not None], words_RW)
    for index, words_W in zip(masked, words_RW, strict=True):
        rows[index].hold(words_W)
    forbidden_RV = unpack(~words_RW, vocab_size, choices_RV.device)
    masked_RV = take(choices_RV, masked)
    put(choices_RV, masked, masked_RV.masked_fill_(forbidden_RV, float("-inf")))


def unpack(words_RW: Words, count: int, device: torch.device) -> Tensor:
    """The first `count` bits of each row as bool."""
    bytes_RB = torch.from_numpy(words_RW.view(np.uint8)).to(device)
    bits_8 = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=device)
    return (bytes_RB[:, :, None] & bits_8).bool().flatten(1)[:, :count]


def logprobs(
    logits_RV: Tensor, rows: Sequence[RowSampler], token_R: Tensor, vocab_size: int
) -> dict[int, TokenLogprob]:
    """Row index to log probabilities under the model's own distribution, where asked for."""
    asking = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
    if not asking:
        return {}
    counts = [rows[index].params.logprobs or 0 for index in asking]
    found = token_logprobs(logits_RV[asking], token_R[asking], counts, vocab_size)
    return dict(zip(asking, found, strict=True))


def draw(logits_RV: Tensor, rows: Sequence[RowSampler], ahead: Sequence[int]) -> Tensor:
    """Draw a token for each row at its temperature and after its filters: (R,) int64.

    ahead: as for `sample`.
    """
    params, device = [row.params for row in rows], logits_RV.device
    temperature_R1 = column([max(p.temperature, _COLDEST) for p in params], device)
    # Subtracting the largest first keeps a tiny temperature from overflowing.
    scaled_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
    scaled_RV /= temperature_R1
    keep_min_p(scaled_RV, [p.min_p for p in params])
    keep_top_k(scaled_RV, [p.top_k for p in params])
    probs_RV = scaled_RV.softmax(dim=-1)
    keep_top_p(probs_RV, [p.top_p for p in params])
    cumulative_RV = probs_RV.cumsum(dim=-1)
    points = [uniform(row.seed, row.num_generated + n) for row, n in zip(rows, ahead, strict=True)]
    points_R1 = column(points, device)
    target_R1 = points_R1 * cumulative_RV[:, -1:]
    token_R = torch.searchsorted(cumulative_RV, target_R1, right=True)[:, 0]
    return token_R.clamp(max=logits_RV.shape[1] - 1)  # beyond the end only in a row of NaN


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """One number a row: (R, 1) float32."""
    # By way of numpy, which reads a list several times faster.
    return torch.from_numpy(np.array(values, dtype=np.float32)[:, None]).to(device)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), a function of its arguments alone, of which any two are independent.

    With 23 bits its product with a float32 total stays below the total, so that the search for
    it always ends at a token of positive probability.
    """
    digest = blake2b(_KEY.pack(seed % 2**64, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 41) / 2**23


def take(x_RV: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of x: a copy, or x itself where that is all of them (the usual case)."""
    return x_RV if len(rows) == x_RV.shape[0] else x_RV[rows]


def put(x_RV: Tensor, rows: Sequence[int], values_RV: Tensor) -> None:
    """Write back what `take` returned and was changed in place."""
    if values_RV is not x_RV:
        x_RV[rows] = values_RV


def keep_min_p(scaled_RV: Tensor, min_p: Sequence[float]) -> None:
    """Remove, in place, tokens less probable than min_p times the most probable one.

    scaled_RV: logits whose largest is 0 in every row.
    """
    if any(min_p):
        least_R1 = column(min_p, scaled_RV.device).log()
        scaled_RV.masked_fill_(scaled_RV < least_R1, float("-inf"))


def keep_top_k(logits_RV: Tensor, top_k: Sequence[int]) -> None:
    """Remove, in place, tokens below the k-th largest; k 0 keeps all."""
    limited = [row for row, k in enumerate(top_k) if 0 < k < logits_RV.shape[1]]
    if not limited:
        return
    rows_RV = take(logits_RV, limited)
    last_R1 = torch.tensor([top_k[row] - 1 for row in limited], device=logits_RV.device)[:, None]
    largest_RK = rows_RV.topk(int(last_R1.max()) + 1, dim=-1).values
    kth_R1 = largest_RK.gather(1, last_R1)
    put(logits_RV, limited, rows_RV.masked_fill_(rows_RV < kth_R1, float("-inf")))


def keep_top_p(probs_RV: Tensor, top_p: Sequence[float]) -> None:
    """Zero, in place, all but the most probable tokens that together reach top_p; 1 keeps all."""
    limited = [row for row, p in enumerate(top_p) if p < 1]
    if not limited:
        return
    rows_RV = take(probs_RV, limited)
    least_R1 = least_kept(rows_RV, column([top_p[row] for row in limited], probs_RV.device))
    put(probs_RV, limited, rows_RV.masked_fill_(rows_RV < least_R1, 0.0))


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
