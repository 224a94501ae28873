"""One model on several devices: which part of each weight a rank holds, and what ranks exchange.

Every rank computes every token. Attention is split by heads, MLPs by their width, embedding and
head by the vocabulary; of the experts a rank holds a slice of each (tensor parallelism), or some of
them whole (expert parallelism), or slices of some. Norms, the router and the MTP layer's `eh_proj`
are small and whole on every rank. See docs/parallel.md.
"""

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError

BY_ROWS = {"q_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head", "head"}
"""Modules whose output is split: `head` is the MTP layer's shared_head.head."""
BY_KV_HEADS = {"k_proj", "v_proj"}
BY_COLUMNS = {"o_proj", "down_proj"}
"""Modules whose input is split; their outputs are summed over the ranks."""
EXPERT = re.compile(r"\.experts\.(\d+)\.")
PATIENCE = timedelta(minutes=2)
"""For a rank that does not come or does not answer; a collective of a step takes milliseconds."""
MOST_RANKS = 64
"""Of those that an error message proposes."""


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts of a dimension."""

    index: int = 0
    count: int = 1

    def of(self, n: int) -> range:
        """The positions of this part among n, which `count` divides."""
        width, rest = divmod(n, self.count)
        assert rest == 0, f"{self=} {n=}"
        return range(self.index * width, (self.index + 1) * width)


WHOLE = Part()


@dataclass(frozen=True)
class Split:
    """Which rows and columns of a matrix a rank holds."""

    rows: Part = WHOLE
    columns: Part = WHOLE


@dataclass(frozen=True)
class Parallel:
    """This process as one of `size` ranks; alone, it exchanges nothing.

    expert_groups: into how many groups the routed experts are dealt, 1 for tensor parallelism and
    `size` for expert parallelism; the size / expert_groups ranks with the same experts hold a slice
    of each. group: of torch.distributed, over all ranks; None is its default one.
    in_order: whether sums are taken from the first rank to the last; collectives take them in an
    order that depends on a number's place among all that they sum at once.
    """

    rank: int = 0
    size: int = 1
    expert_groups: int = 1
    group: dist.ProcessGroup | None = None
    in_order: bool = False

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x. May write into x."""
        if self.size == 1:
            return x
        x = x.contiguous()
        if self.in_order:
            first, *others = self._gathered(x)
            return sum(others, start=first)
        dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x (T, N), one beside the other: (T, size * N)."""
        if self.size == 1:
            return x
        return torch.cat(self._gathered(x.contiguous()), dim=1)

    def _gathered(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        return parts

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x, written into that of the others."""
        if self.size > 1:
            dist.broadcast(x, group=self.group, group_src=0)
        return x

    def local(self, config: ModelConfig) -> ModelConfig:
        """The same model with the attention heads of this rank alone."""
        return replace(
            config,
            num_attention_heads=config.num_attention_heads // self.size,
            num_key_value_heads=config.num_key_value_heads // self._kv_part(config).count,
        )

    def split(self, module: str, config: ModelConfig) -> Split:
        """What this rank holds of a module ("model.layers.0.self_attn.q_proj")."""
        name = module.rpartition(".")[2]
        part = self._expert_part if EXPERT.search(module) else Part(self.rank, self.size)
        if name in BY_ROWS:
            return Split(rows=part)
        if name in BY_KV_HEADS:
            return Split(rows=self._kv_part(config))
        if name in BY_COLUMNS:
            return Split(columns=part)
        return Split()

    def experts(self, count: int) -> range:
        """Which of so many routed experts this rank holds, in whole or in part."""
        return Part(self.rank // self._expert_part.count, self.expert_groups).of(count)

    def holds(self, module: str, config: ModelConfig) -> bool:
        """False for the routed experts of other ranks."""
        found = EXPERT.search(module)
        return found is None or int(found[1]) in self.experts(config.n_routed_experts)

    def check(self, config: ModelConfig) -> None:
        """Raises UsageError, naming the sizes that work, if a part of the model cannot be split."""
        faults = self._faults(config)
        if faults:
            whole = self.expert_groups == self.size
            others = (replace(self, size=n, expert_groups=n) if whole else replace(self, size=n)
                      for n in range(1, MOST_RANKS + 1))  # fmt: skip
            sizes = ", ".join(str(p.size) for p in others if not p._faults(config))
            raise UsageError(
                f"the model cannot be split among {self.size} rank{'s' * (self.size > 1)}: "
                f"{faults[0]}; "
                f"--tensor-parallel-size can be {sizes or 'no number'} here."
            )

    @property
    def _expert_part(self) -> Part:
        """The slice of its experts that this rank holds."""
        width = self.size // self.expert_groups
        return Part(self.rank % width, width)

    def _kv_part(self, config: ModelConfig) -> Part:
        """Beyond as many ranks as key/value heads, neighbours hold a copy of the same one."""
        count = min(self.size, config.num_key_value_heads)
        return Part(self.rank * count // self.size, count)

    def _faults(self, config: ModelConfig) -> list[str]:
        """What cannot be split equally."""
        size, groups = self.size, self.expert_groups
        if size % groups:
            return [f"{size} is no multiple of {groups} groups of experts"]
        kv_heads = config.num_key_value_heads
        shared = config.moe_intermediate_size * config.n_shared_experts
        dense = config.intermediate_size if config.first_k_dense_replace else 0
        numbers = [
            ("num_attention_heads", config.num_attention_heads, size),
            ("vocab_size", config.vocab_size, size),
            ("intermediate_size", dense, size),
            ("the shared expert's width", shared, size),
            ("moe_intermediate_size", config.moe_intermediate_size, size // groups),
            ("n_routed_experts", config.n_routed_experts, groups),
        ]
        faults = [
            f"{what} {n} is no multiple of {parts}" for what, n, parts in numbers if n % parts
        ]
        if kv_heads % size and size % kv_heads:
            faults.append(
                f"num_key_value_heads {kv_heads} is neither a multiple nor a divisor of it"
            )
        return faults


SINGLE = Parallel()


def join(rank: int, size: int, library: str, meeting: Path, expert_groups: int = 1) -> Parallel:
    """Meet the other ranks of this machine by a library of torch.distributed; all must call it.

    meeting: a file that does not exist yet, where they find each other. Raises UsageError if one
    does not come, or cannot reach the others.
    """
    try:
        dist.init_process_group(
            library, init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"rank {rank} of {size} cannot join the others by {library} ({error}): check that this "
            "PyTorch has it and that every rank has a device of its own."
        ) from None
    return Parallel(rank, size, expert_groups)


def leave() -> None:
    """Free what `join` made; no effect where it made nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()
