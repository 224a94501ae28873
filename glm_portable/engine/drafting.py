"""Drafts from the model's MTP layer: what a sequence's next tokens may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

from torch import Tensor

from glm_portable.engine.scheduler import Sequence as TokenSequence
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Ops, Step, ids


@runtime_checkable
class DraftingModel(Protocol):
    """What drafting needs of `glm_portable.model.Model`."""

    @property
    def ops(self) -> Ops: ...

    @property
    def has_mtp(self) -> bool: ...

    def mtp_forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, caches: Sequence[KVCache]
    ) -> tuple[Tensor, Tensor]: ...

    def mtp_logits(self, hidden_TD: Tensor) -> Tensor: ...


@dataclass(eq=False, slots=True)
class Computed:
    """What a step has computed of one sequence, for good: its tokens from `start` up to `end`.

    row: of its first token in the step. The token at `end` is known. drafts: whether to draft
    behind it.
    """

    sequence: TokenSequence
    start: int
    end: int
    row: int
    drafts: bool


class Drafter:
    """Keeps the MTP layer's cache in step with the model's, and drafts from it.

    The layer sees every token that the model has seen, the prompt's too: its guesses are made from
    its own keys and values of all of them.
    """

    def __init__(
        self,
        model: object,
        caches: Sequence[KVCache],
        config: SpeculativeConfig,
        vocab_size: int,
        page_size: int,
    ) -> None:
        """Raises UsageError for a model without the layer."""
        if not isinstance(model, DraftingModel) or not model.has_mtp:
            raise UsageError(
                "the checkpoint has no MTP layer to draft with; leave speculative decoding off."
            )
        self._model, self._caches, self._config = model, caches, config
        self._vocab_size, self._page_size = vocab_size, page_size

    def draft(self, done: Sequence[Computed], hidden_TD: Tensor) -> None:
        """Run the layer over what a step has computed, and set the sequences' drafts.

        hidden_TD: of the whole step, after the model's final norm.
        """
        done = [one for one in done if one.start < one.end]
        if not done:
            return
        wanted = [self._wanted(one) for one in done]
        # Those that want most come first, so that the ones left in each round are the first few.
        order = sorted(range(len(done)), key=wanted.__getitem__, reverse=True)
        done, wanted = [done[i] for i in order], [wanted[i] for i in order]
        lasts = ids([n - 1 for n in accumulate(o.end - o.start for o in done)], hidden_TD.device)
        normed_TD, residual_TD = (x_TD[lasts] for x_TD in self._catch_up(done, hidden_TD))
        guesses: list[Tensor] = []
        for place in range(wanted[0]):
            count = sum(number > place for number in wanted)
            if place:
                fed_TD = normed_TD if self._config.chain == "normed" else residual_TD
                step = self._step([(one.end + place - 1, 1, one.sequence) for one in done[:count]])
                normed_TD, residual_TD = self._model.mtp_forward(
                    guesses[-1][:count], fed_TD[:count], step, self._caches
                )
            logits_RV = self._model.mtp_logits(normed_TD[:count])
            guesses.append(logits_RV[:, : self._vocab_size].argmax(dim=-1))
        columns = [guess.tolist() for guess in guesses]
        for row, one in enumerate(done):
            one.sequence.drafts = [column[row] for column in columns if row < len(column)]

    def _wanted(self, one: Computed) -> int:
        """How many drafts the sequence has use for, and slots: all but the first need one."""
        if not one.drafts:
            return 0
        sequence = one.sequence
        room = len(sequence.block_table) * self._page_size - one.end + 1
        use = sequence.max_length - len(sequence.token_ids) - 1
        return max(0, min(self._config.num_speculative_tokens, use, room))

    def _catch_up(self, done: Sequence[Computed], hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layer where the model has run, each position with the token that follows it."""
        rows: list[int] = []
        following: list[int] = []
        for one in done:
            rows += range(one.row, one.row + one.end - one.start)
            following += one.sequence.token_ids[one.start + 1 : one.end + 1]
        step = self._step([(o.start, o.end - o.start, o.sequence) for o in done])
        device = hidden_TD.device
        return self._model.mtp_forward(
            ids(following, device), hidden_TD[ids(rows, device)], step, self._caches
        )

    def _step(self, layout: Sequence[tuple[int, int, TokenSequence]]) -> Step:
        rows = [(start, count, sequence.block_table) for start, count, sequence in layout]
        return Step.build(rows, self._page_size, self._model.ops.device)
