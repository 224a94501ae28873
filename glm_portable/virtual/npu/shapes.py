"""A rank's part of a model whose checkpoint is not here: its weights as shapes without numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glm_portable import formats
from glm_portable.config import ModelConfig
from glm_portable.ops import Weight
from glm_portable.parallel import Parallel

META, BF16 = torch.device("meta"), torch.bfloat16
SHARED: dict[str, Any] = dict(
    max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=1e6, partial_rotary_factor=0.5,
    attention_bias=True, n_shared_experts=1, num_experts_per_tok=8, n_group=1, topk_group=1,
    norm_topk_prob=True, num_nextn_predict_layers=1, tie_word_embeddings=False,
    eos_token_id=(151329, 151336, 151338), dtype="bfloat16", quantization=None,
    vocab_size=151552, head_dim=128, num_attention_heads=96, num_key_value_heads=8,
)  # fmt: skip
PUBLISHED = {
    "glm-4.5": ModelConfig(
        **SHARED, hidden_size=5120, intermediate_size=12288, num_hidden_layers=92,
        use_qk_norm=True, first_k_dense_replace=3, moe_intermediate_size=1536,
        n_routed_experts=160, routed_scaling_factor=2.5,
    ),
    "air": ModelConfig(
        **SHARED, hidden_size=4096, intermediate_size=10944, num_hidden_layers=46,
        use_qk_norm=False, first_k_dense_replace=1, moe_intermediate_size=1408,
        n_routed_experts=128, routed_scaling_factor=1.0,
    ),
}  # fmt: skip
"""config.json of zai-org/GLM-4.5 (4.6 and 4.7 have its shapes) and zai-org/GLM-4.5-Air."""


@dataclass(frozen=True)
class Rank:
    """One of `ranks` devices that share a model.

    Heads, widths of MLPs and the vocabulary are split among all; of the routed experts a rank has a
    slice of each (expert_groups 1, tensor parallelism) or some whole (expert_groups = ranks).
    """

    ranks: int = 1
    expert_groups: int = 1

    def config(self, whole: ModelConfig) -> ModelConfig:
        """This rank's sizes; where ranks are more than key/value heads, some hold the same one."""
        n = self.ranks
        return replace(
            whole,
            num_attention_heads=whole.num_attention_heads // n,
            num_key_value_heads=max(1, whole.num_key_value_heads // n),
            intermediate_size=whole.intermediate_size // n,
            moe_intermediate_size=whole.moe_intermediate_size // n,
            vocab_size=whole.vocab_size // n,
        )


class OneOfMany(Parallel):
    """A rank whose collectives have the shapes of the real ones and talk to nobody."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x.new_empty(len(x), self.size * x.shape[1])


class Shapes:
    """Stands where a checkpoint does, without data: the parts of the last rank."""

    dtype = BF16

    def __init__(self, config: ModelConfig, rank: Rank, int8: bool) -> None:
        self.config, self.int8 = config, int8
        self.parallel = OneOfMany(rank.ranks - 1, rank.ranks, rank.expert_groups)
        self.parallel.check(config)

    def has(self, name: str) -> bool:
        """As GLM-4.6: the MTP layer shares embedding and head."""
        return "embed_tokens" not in name and "shared_head.head" not in name

    def is_quantised(self, module: str) -> bool:
        return False

    def kv_scales(self, attention: str) -> None:
        """Its keys and values are not calibrated for FP8."""

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        split = self.parallel.split(name.rpartition(".")[0], self.config)
        part = (len(split.rows.of(shape[0])), *(len(split.columns.of(n)) for n in shape[1:]))
        return torch.empty(part, dtype=dtype or self.dtype, device=META)

    def weight(self, modules: Sequence[str], outs: Sequence[int], in_features: int) -> Weight:
        return self._linear(modules, outs, in_features)

    def experts(
        self, prefix: str, projections: Sequence[str], count: int, out: int, in_features: int
    ) -> Weight:
        held = self.parallel.experts(count)
        modules = [f"{prefix}.{held.start}.{projection}" for projection in projections]
        return self._linear(modules, [out] * len(modules), in_features, len(held))

    def finish(self) -> None:
        """Everything that was asked for was there."""

    def _linear(
        self, modules: Sequence[str], outs: Sequence[int], in_features: int, *stacked: int
    ) -> Weight:
        splits = [self.parallel.split(module, self.config) for module in modules]
        rows = sum(len(s.rows.of(n)) for s, n in zip(splits, outs, strict=True))
        shape = (*stacked, rows, len(splits[0].columns.of(in_features)))
        if not (self.int8 and formats.is_quantised(modules[0], self.config)):
            return Weight(torch.empty(shape, dtype=BF16, device=META), BF16)
        data = torch.empty(shape, dtype=torch.int8, device=META)
        scale = torch.empty(*shape[:-1], 1, device=META)
        return Weight(data, BF16, scale, None, True)


def implied_bytes(whole: ModelConfig, rank: Rank, int8: bool) -> int:
    """What a rank's weights must take, by the configuration and the format alone."""
    c = rank.config(whole)
    layers = range(c.num_hidden_layers + c.num_nextn_predict_layers)
    d, wide, plain = c.hidden_size, 4, 2
    ends = 2 * c.vocab_size * d * plain + d * plain
    mtp = c.num_nextn_predict_layers * (2 * d * d + 3 * d) * plain
    total = ends + mtp
    for i in layers:
        quantised = int8 and i < c.num_hidden_layers
        for count, n, r, takes_int8, stacked in _matrices(c, rank, i):
            eight = quantised and takes_int8
            scales = (wide + plain if stacked else wide) if eight else 0
            total += count * n * (r * (1 if eight else plain) + scales)
        qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
        qk_norm = 2 * c.head_dim if c.use_qk_norm else 0
        total += (2 * d + qk_norm + (qkv if c.attention_bias else 0)) * plain
        if i >= c.first_k_dense_replace:
            total += c.n_routed_experts * (d + 1) * wide
    return total


def _matrices(c: ModelConfig, rank: Rank, i: int) -> Iterator[tuple[int, int, int, bool, bool]]:
    """(how many, rows, columns, whether W8A8 rounds it, whether it is an expert) of layer i."""
    d, heads = c.hidden_size, c.num_attention_heads * c.head_dim
    yield 1, heads + 2 * c.num_key_value_heads * c.head_dim, d, True, False
    yield 1, d, heads, True, False
    if i < c.first_k_dense_replace:
        yield 1, 2 * c.intermediate_size, d, False, False
        yield 1, d, c.intermediate_size, False, False
        return
    shared = c.moe_intermediate_size * c.n_shared_experts
    yield 1, 2 * shared, d, False, False
    yield 1, d, shared, False, False
    count, width = (
        c.n_routed_experts // rank.expert_groups,
        c.moe_intermediate_size * rank.expert_groups,
    )
    yield count, 2 * width, d, True, True
    yield count, d, width, True, True
