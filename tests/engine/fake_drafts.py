"""The fake model with an MTP layer that guesses right exactly when its own cache is right.

A hidden state is two hashes: of all tokens up to its own, and of the same without the first. The
MTP layer makes the next one from the token that follows, as the real one does, but only if the
second hash is that of the tokens it finds in its own cache; otherwise its guess is another token.
So a prompt that it has not seen whole, a slot that was not written again after a wrong draft, or a
page of somebody else's shows as drafts that are not accepted.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glm_portable.ops import KVCache, Step
from tests.engine.fake_model import EOS, VOCAB, FakeModel, logits_of, prefix_hash

_MODULUS = 1_000_003


def further(value: int, token: int) -> int:
    """`prefix_hash` of one more token."""
    return (value * 31 + token + 1) % _MODULUS


def always(value: int) -> bool:
    return True


class DraftingModel(FakeModel):
    """right: of the hash of the tokens up to a draft, whether it is to be the right one."""

    has_mtp = True

    def __init__(
        self,
        right: Callable[[int], bool] = always,
        vocab_size: int = VOCAB,
        eos: tuple[int, ...] = (EOS,),
    ) -> None:
        super().__init__(vocab_size, eos)
        self.right, self.mtp_steps = right, 0

    def allocate(self, pages: int, page_size: int) -> list[KVCache]:
        return super().allocate(pages, page_size) + super().allocate(pages, page_size)

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        super().forward(ids_T, step, caches)
        return torch.tensor([
            [prefix_hash(tokens), prefix_hash(tokens[1:])] for tokens in seen(step, caches[0])
        ])  # fmt: skip

    def mtp_forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, caches: Sequence[KVCache]
    ) -> tuple[Tensor, Tensor]:
        assert len(next_ids_T) == len(hidden_TD) == len(step.slots_T)
        self.mtp_steps += 1
        caches[1].k_PSGC.view(-1)[step.slots_T] = next_ids_T
        rows = []
        for token, hidden, tokens in zip(
            next_ids_T.tolist(), hidden_TD.tolist(), seen(step, caches[1]), strict=True
        ):
            whole, rest = (further(value, token) for value in hidden)
            rows.append([whole, rest if rest == prefix_hash(tokens) else -1])
        return torch.tensor(rows), torch.tensor(rows)

    def mtp_logits(self, hidden_TD: Tensor) -> Tensor:
        logits = logits_of(hidden_TD[:, 0], self.config.vocab_size)
        for row, (value, rest) in zip(logits, hidden_TD.tolist(), strict=True):
            if rest < 0 or not self.right(value):
                row[row.argmax()] = -5
        return logits


def seen(step: Step, cache: KVCache) -> list[list[int]]:
    """For each token of a step, what lies in the slots of its sequence up to its own."""
    slots, size = cache.k_PSGC.view(-1), cache.k_PSGC.shape[1]
    found, begin = [], 0
    for b, (end, length) in enumerate(zip(step.query_ends, step.kv_lengths, strict=True)):
        pages = step.block_table_BP[b].tolist()
        tokens = [int(slots[pages[p // size] * size + p % size]) for p in range(length)]
        found += [tokens[: length - (end - begin) + 1 + t] for t in range(end - begin)]
        begin = end
    return found
