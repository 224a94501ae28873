"""The parts of a model whose weights come from disk when their turn is, and go again.

A layer holds its attention, its dense or shared MLP and its router; an expert is there while it
computes, the head comes in blocks of rows, and of the embedding only the rows that are asked for.
The numbers are those of the whole model: `backends/reference.py` computes both.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.ops import Weight
from glm_portable.verify.subject import Subject

BLOCK = 16_384
"""Rows of the head in memory at a time."""
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Streaming:
    """The reference, whose experts are read when their turn is: `Weight.packed` gives each."""

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def experts(
        self, x_TD: Tensor, gate_up: Weight, down: Weight, weights_TK: Tensor, experts_TK: Tensor
    ) -> Tensor:
        def one(e: int) -> tuple[Weight, Weight]:
            return gate_up.packed(e), down.packed(e)

        return reference.mixture(x_TD, one, len(gate_up.data), weights_TK, experts_TK)


class Streamed:
    """A `Checkpoint` for a layer at a time, in whatever format the subject is read.

    chosen: the token ids whose embeddings are wanted, in this order. The MTP layer's own embedding
    is cut to them, and its own head is read by `head`.
    """

    def __init__(self, subject: Subject, dtype: torch.dtype, chosen: Sequence[int]) -> None:
        self._inner = subject.weights(dtype, torch.device("cpu"))
        self.config, self.dtype, self._chosen = self._inner.config, dtype, chosen
        self._mtp_head = f"model.layers.{self.config.num_hidden_layers}.shared_head.head"
        self._inner.skip_linear(self._mtp_head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def has(self, name: str) -> bool:
        return name != f"{self._mtp_head}.weight" and self._inner.has(name)

    def is_quantised(self, module: str) -> bool:
        return module != self._mtp_head and self._inner.is_quantised(module)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        if name.endswith("embed_tokens.weight"):
            return self.embedding(name)
        return self._inner.tensor(name, shape, dtype)

    def embedding(self, name: str = EMBEDDING) -> Tensor:
        """The chosen rows."""
        return torch.cat([self._inner.rows(name, i, i + 1) for i in self._chosen])

    def experts(
        self, prefix: str, projections: Sequence[str], count: int, out: int, width: int
    ) -> Weight:
        """A weight that holds nothing: its `packed` reads one expert."""
        modules = [[f"{prefix}.{e}.{p}" for p in projections] for e in range(count)]
        for module in sum(modules, []):
            self._inner.skip_linear(module)

        def one(e: int) -> Weight:
            return self._inner.weight(modules[e], [out] * len(projections), width)

        shape = (count, out * len(projections), width)
        return Weight(torch.empty(shape, device="meta"), self.dtype, packed=one)

    def skip_prefix(self, prefix: str) -> None:
        """Leave all that begins so unused on purpose."""
        for name in self._inner.names():
            if name.startswith(prefix):
                self._inner.skip(name)

    def head(self, mtp: bool = False) -> Iterator[tuple[int, Weight]]:
        """(first row, weight) of each block of the model's head, or of the MTP layer's own."""
        v = self.config.vocab_size
        name = EMBEDDING if self.config.tie_word_embeddings else HEAD
        own = f"{self._mtp_head}.weight"
        if mtp and self._inner.has(own) and not self._inner.is_quantised(self._mtp_head):
            name = own
        for begin in range(0, v, BLOCK):
            rows = self._inner.rows(name, begin, min(v, begin + BLOCK))
            yield begin, Weight(rows, self.dtype)
