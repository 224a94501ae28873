"""What a model is given to compute when two backends are compared: steps of every kind.

Prompts in one step and in chunks, decode and several queries at the end (as for checking drafted
tokens), of two sequences, whose pages are out of order and between each other. Page 0 is nobody's,
and what the pages held before is noise, as on a server that has run for a while.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step


@dataclass(frozen=True)
class Scenario:
    """tokens: of each sequence, one more than the steps compute: the MTP layer sees a token ahead.

    steps: each one's sequences, as (which, tokens already cached, tokens in this step).
    names: each step's, in words.
    """

    tokens: Sequence[Sequence[int]]
    steps: Sequence[Sequence[tuple[int, int, int]]]
    names: Sequence[str]
    page_size: int

    @classmethod
    def usual(cls, ids: Sequence[int], prefill: int, page_size: int) -> "Scenario":
        """A prompt of `prefill` tokens and all that can follow it. ids: `usual_tokens(prefill)`."""
        chunk, other = _sizes(prefill)
        counts = [
            ("prefill", [(0, prefill)]),
            ("chunk beside a prefill", [(0, chunk), (1, other)]),
            ("decode of two sequences", [(0, 1), (1, 1)]),
            ("three queries beside a decode", [(0, 3), (1, 1)]),
            ("decode of one sequence", [(1, 1)]),
        ]
        cached = [0, 0]
        steps = []
        for _, step in counts:
            steps.append([(which, cached[which], n) for which, n in step])
            for which, n in step:
                cached[which] += n
        first = cached[0] + 1
        tokens = [ids[:first], ids[first : first + cached[1] + 1]]
        names = [f"step {i} ({name})" for i, (name, _) in enumerate(counts)]
        return cls(tokens, steps, names, page_size)

    @property
    def pages(self) -> int:
        """With page 0."""
        return 1 + sum(self._page_counts)

    def build(self, i: int, device: torch.device) -> Step:
        """Step i."""
        table = self._tables()
        rows = [(cached, count, table[which]) for which, cached, count in self.steps[i]]
        return Step.build(rows, self.page_size, device)

    def ids(self, i: int, ahead: int = 0) -> Tensor:
        """(T,) tokens of step i, or those that follow them."""
        begins = [(which, cached + ahead, n) for which, cached, n in self.steps[i]]
        return torch.tensor(
            [t for w, begin, n in begins for t in self.tokens[w][begin : begin + n]]
        )

    def caches(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> KVCache:
        """Pages of one layer with the same noise for everyone."""
        cache = KVCache.allocate(config, self.pages, self.page_size, dtype, device)
        generator = torch.Generator().manual_seed(0)
        for pages in (cache.k_PSGC, cache.v_PSGC):
            noise = torch.randn(pages.shape, generator=generator).bfloat16()
            pages.copy_(noise)
        return cache

    @property
    def _page_counts(self) -> list[int]:
        return [-(-(len(tokens) - 1) // self.page_size) for tokens in self.tokens]

    def _tables(self) -> list[list[int]]:
        """Pages of each sequence: taken in turns, from the last one down."""
        left, tables = self._page_counts, [[] for _ in self.tokens]  # type: list[int], list[list[int]]
        page = self.pages - 1
        while page:
            for which, table in enumerate(tables):
                if len(table) < left[which]:
                    table.append(page)
                    page -= 1
        return tables


def usual_tokens(prefill: int) -> int:
    """How many tokens `Scenario.usual` takes. Raises UsageError for too short a prompt."""
    if prefill < 2:
        raise UsageError(f"a prompt of {prefill} tokens is too short to compare; take 2 or more.")
    chunk, other = _sizes(prefill)
    return prefill + chunk + 1 + 3 + 1 + other + 3 + 1


def _sizes(prefill: int) -> tuple[int, int]:
    """Of the second chunk, and of the other sequence's prompt."""
    return 1 + prefill * 3 // 8, 1 + prefill * 2 // 3
