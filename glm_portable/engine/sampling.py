"""From logits to the next token of each row; rows are independent of each other.

The order is vLLM's: logit_bias and min_tokens, penalties, the grammar's mask, temperature, min_p,
top_k, top_p.
"""

import math
from collections.abc import Iterable, Sequence
from operator import is_

import msgspec
import numpy as np
import torch
from torch import Tensor

from glm_portable.engine import grammar
from glm_portable.engine.drawing import Filters, Rows, column, uniform
from glm_portable.engine.grammar import GrammarState, Words
from glm_portable.engine.logprobs import token_logprobs
from glm_portable.engine.penalties import History, add_biases, penalize, remove
from glm_portable.engine.types import SamplingParams, TokenLogprob


class RowSampler:
    """One request's parameters and its progress, kept from its first token to its last.

    stop_ids: the tokens that would end it, held back until min_tokens have been generated. history:
    what its penalties need, if it has any. state: of its grammar.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        stop_ids: Iterable[int],
        prompt_ids: Iterable[int],
    ) -> None:
        self.params, self.seed, self.num_generated = params, seed, 0
        self._stop_ids = sorted(stop_ids)
        self._held_until = params.min_tokens if self._stop_ids else 0
        penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        self.history = None if penalties == (1, 0, 0) else History(prompt_ids)
        self.state: GrammarState | None = None if params.grammar is None else params.grammar.start()
        # Asked for every token, so that what never changes is told once.
        self._always_adjusts = bool(self.history or params.logit_bias or self.state is not None)

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

    @property
    def removed_ids(self) -> Sequence[int]:
        """What it must not choose next, the grammar aside."""
        return self._stop_ids if self._holds and self.state is None else ()

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
        if self.history is not None:
            self.history.append(token_id)
        if self.state is not None:
            self.state.append(token_id)


class Sampled(msgspec.Struct, gc=False):
    """A row's next token, and its log probability if the request asked for it.

    token_id is None where there is none to choose: error says why.
    """

    token_id: int | None
    logprob: TokenLogprob | None = None
    error: str = "The model returned no finite logits for this request."


class _Plan:
    """What the parameters of a step's rows come to. width: how many tokens to choose from."""

    def __init__(self, params: list[SamplingParams], width: int, device: torch.device) -> None:
        self.params = params
        self.drawn = [row for row, p in enumerate(params) if p.temperature > 0]
        self.drawn_rows = Rows(self.drawn, len(params), device)
        self.filters = Filters([params[row] for row in self.drawn], width, device)
        self.scored = [row for row, p in enumerate(params) if p.logprobs is not None]

    def serves(self, params: list[SamplingParams]) -> bool:
        """Whether these are the very same objects: comparing what is in them would take longer."""
        return len(params) == len(self.params) and all(map(is_, params, self.params))


class Sampler:
    """Chooses tokens by the logits of one model.

    vocab_size: columns of the logits from there on are ones that no token has, and are never
    chosen nor reported.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._plan: _Plan | None = None  # the last one: mostly the next step has the same requests

    def sample(
        self, logits_RV: Tensor, rows: Sequence[RowSampler], ahead: Sequence[int] | None = None
    ) -> list[Sampled]:
        """Choose a token for each row.

        logits_RV: of the model, float32 or wider. ahead: how many tokens lie between what a row's
        request has and the token to choose, where any do; such a row must not adjust its logits.
        """
        choices_RV = logits_RV[:, : self._vocab_size].float()
        adjusted = any([row.adjusts for row in rows])  # a list: a generator is slower
        if adjusted:
            choices_RV = choices_RV.clone()  # .float() may have copied nothing
            adjust(choices_RV, rows)
            mask(choices_RV, rows)
        best_R, token_R = choices_RV.max(dim=-1)
        plan = self._plan_of([row.params for row in rows], choices_RV)
        if plan.drawn:
            places = [row.num_generated for row in rows]
            if ahead:
                places = [place + n for place, n in zip(places, ahead, strict=True)]
            points = uniform([(rows[index].seed, places[index]) for index in plan.drawn])
            points_R1 = column(points, choices_RV.device)
            drawn_R = plan.filters.draw(plan.drawn_rows.take(choices_RV), points_R1)
            if len(plan.drawn) == len(rows):
                token_R = drawn_R
            else:
                plan.drawn_rows.put(token_R, drawn_R)
        reported = logprobs(logits_RV, plan, token_R, self._vocab_size)
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

    def _plan_of(self, params: list[SamplingParams], choices_RV: Tensor) -> _Plan:
        plan = self._plan
        if plan is None or not plan.serves(params):
            plan = self._plan = _Plan(params, choices_RV.shape[1], choices_RV.device)
        return plan


def adjust(logits_RV: Tensor, rows: Sequence[RowSampler]) -> None:
    """Apply bias, min_tokens and penalties in place."""
    params = [row.params for row in rows]
    add_biases(logits_RV, [p.logit_bias for p in params])
    remove(logits_RV, [row.removed_ids for row in rows])
    penalize(logits_RV, [row.history for row in rows], params)


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
    some = Rows(masked, len(rows), choices_RV.device)
    masked_RV = some.take(choices_RV)
    some.put(choices_RV, masked_RV.masked_fill_(forbidden_RV, float("-inf")))


def unpack(words_RW: Words, count: int, device: torch.device) -> Tensor:
    """The first `count` bits of each row as bool."""
    bytes_RB = torch.from_numpy(words_RW.view(np.uint8)).to(device)
    bits_8 = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=device)
    return (bytes_RB[:, :, None] & bits_8).bool().flatten(1)[:, :count]


def logprobs(
    logits_RV: Tensor, plan: _Plan, token_R: Tensor, vocab_size: int
) -> dict[int, TokenLogprob]:
    """Row index to log probabilities under the model's own distribution, where asked for."""
    asking = plan.scored
    if not asking:
        return {}
    counts = [plan.params[index].logprobs or 0 for index in asking]
    found = token_logprobs(logits_RV[asking], token_R[asking], counts, vocab_size)
    return dict(zip(asking, found, strict=True))
