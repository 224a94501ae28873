"""One MoE layer of GLM-4.5-355B as one of 16 ranks has it, traced through torch_npu's Meta kernels.

No number is computed: every call is accepted, every shape fits, and the weights of a rank take the
bytes that their formats mean.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends.ascend import AscendOps
from glm_portable.backends.ascend.linear import packed_of
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.virtual import npu
from tests.random_checkpoint import small_config

RANKS, HIDDEN, HEADS, SIZE, EXPERTS, WIDTH = 16, 5120, 96, 128, 160, 1536
META, BF16 = torch.device("meta"), torch.bfloat16


class Traced:
    """torch.ops.npu on tensors without data; npu_format_cast is the one that has no Meta kernel."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.npu, name)

    def npu_format_cast(self, x: Tensor, acl_format: int) -> Tensor:
        return x


@dataclass(frozen=True)
class Rank:
    """The weights of one rank: experts split by width (TP) or by number (EP)."""

    ops: AscendOps
    kind: torch.dtype

    def weight(self, *shape: int) -> Weight:
        data = torch.empty(shape, dtype=self.kind, device=META)
        if self.kind == BF16:
            return self.ops.pack(Weight(data, BF16))
        scale = torch.empty(*shape[:-1], 1, device=META)
        return self.ops.pack(Weight(data, BF16, scale, None, True))


def layer(ops: AscendOps, rank: Rank, experts: int, width: int, step: Step) -> list[Weight]:
    """Run it; returns the rank's weights."""
    tokens = step.query_ends[-1]
    heads = HEADS // RANKS
    cfg = ModelConfig.from_dict(
        small_config(n_routed_experts=EXPERTS, num_experts_per_tok=8, routed_scaling_factor=2.5)
    )

    def plain(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    qkv, out = rank.weight((heads + 2) * SIZE, HIDDEN), rank.weight(HIDDEN, heads * SIZE)
    gate_up = rank.weight(experts, 2 * width, HIDDEN)
    down = rank.weight(experts, HIDDEN, width)
    x, residual = ops.rms_norm(plain(tokens, HIDDEN), plain(HIDDEN), 1e-5, plain(tokens, HIDDEN))
    q, k, v = (
        part.view(tokens, -1, SIZE)
        for part in torch.split(
            ops.linear(x, qkv, plain((heads + 2) * SIZE)), [heads * SIZE, SIZE, SIZE], dim=-1
        )
    )
    cache = KVCache(plain(64, 128, 1, SIZE), plain(64, 128, 1, SIZE))
    angles = plain(tokens, 64)
    q = ops.rope_store(q, k, v, angles, angles, cache, step, plain(SIZE), plain(SIZE), 1e-5)
    x = ops.linear(ops.attend(q, cache, step, SIZE**-0.5).flatten(1), out)
    x, residual = ops.rms_norm(x, plain(HIDDEN), 1e-5, residual)
    gate, bias = plain(EXPERTS, HIDDEN, dtype=torch.float32), plain(EXPERTS, dtype=torch.float32)
    weights, chosen = ops.route(x, gate, bias, cfg)
    assert weights.shape == chosen.shape == (tokens, 8) and chosen.dtype == torch.int32
    y = ops.experts(x, gate_up, down, weights, chosen)
    assert y.shape == residual.shape == (tokens, HIDDEN) and y.dtype == BF16
    return [qkv, out, gate_up, down]


STEPS = {
    "prefill 4096": [(0, 4096, list(range(32)))],
    "decode 256": [(99, 1, [i % 64]) for i in range(256)],
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", [BF16, torch.int8], ids=["bf16", "w8a8"])
@pytest.mark.parametrize(
    ("experts", "width"),
    [(EXPERTS, WIDTH // RANKS), (EXPERTS // RANKS, WIDTH)],
    ids=["TP16", "EP16"],
)
def test_a_rank_of_355b(experts: int, width: int, kind: torch.dtype, name: str) -> None:
    chip = npu.connect("Ascend910_9391").chip
    ops = AscendOps(chip, Traced(), META)
    step = Step.build(STEPS[name], 128, META)
    held = layer(ops, Rank(ops, kind), experts, width, step)
    found = sum(part.nbytes for w in held for part in packed_of(w).parts)
    heads = HEADS // RANKS
    numbers = (heads + 2) * SIZE * HIDDEN + HIDDEN * heads * SIZE + 3 * experts * width * HIDDEN
    assert found == numbers * kind.itemsize
