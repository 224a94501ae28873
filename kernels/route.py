"""The router: float32 gate product, sigmoid, group-limited choice (DeepSeek-V3, arXiv:2412.19437).

Everything is float32, as the bias is a large offset with a tiny spread: in bf16 it re-routes most
tokens. The product is IEEE float32 and never tf32. Nothing depends on how many tokens there are,
so a token is routed alike alone and in a crowd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.kernels.launch import Launch

SPLIT_D = 512
"""Hidden dimensions a program sums; one token would else keep a handful of programs busy."""


@triton.jit(do_not_specialize=("T",))  # one machine code for any number of tokens
def gate_kernel(
    x_ptr, gate_ptr, partial_ptr, x_stride, T, D, E,
    SPLIT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partial (splits, T, E): x @ gate.T over one split of the hidden dimensions."""
    split = tl.program_id(2)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    x_ptrs = x_ptr + t[:, None].to(tl.int64) * x_stride
    gate_ptrs = gate_ptr + e[None, :] * D
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for step in range(0, SPLIT, BLOCK_D):
        d = split * SPLIT + step + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptrs + d[None, :], mask=(t[:, None] < T) & (d[None, :] < D), other=0.0)
        gate = tl.load(gate_ptrs + d[:, None], mask=(e[None, :] < E) & (d[:, None] < D), other=0.0)
        total = tl.dot(x.to(tl.float32), gate, total, input_precision="ieee")
    out = partial_ptr + (split * T + t[:, None]).to(tl.int64) * E + e[None, :]
    tl.store(out, total, mask=(t[:, None] < T) & (e[None, :] < E))


@triton.jit
def _first_largest(values, free, index, NONE: tl.constexpr):
    """Index of the largest value that is free, the lowest of equal ones."""
    best = tl.max(tl.where(free, values, -float("inf")))
    return tl.min(tl.where(free & (values >= best), index, NONE))


@triton.jit(do_not_specialize=("T",))
def choose_kernel(
    partial_ptr, bias_ptr, weights_ptr, experts_ptr, T, E, SPLITS, factor,
    GROUPS: tl.constexpr, KEPT: tl.constexpr, SIZE: tl.constexpr, K: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One token a program; its experts lie in a tile (groups, experts of a group)."""
    token = tl.program_id(0)
    group = tl.arange(0, BLOCK_G)[:, None]
    member = tl.arange(0, BLOCK_S)[None, :]
    free = (group < GROUPS) & (member < SIZE)
    expert = tl.where(free, group * SIZE + member, GROUPS * SIZE)
    logits = tl.zeros((BLOCK_G, BLOCK_S), tl.float32)
    for split in range(SPLITS):
        row = (split * T + token).to(tl.int64) * E
        logits += tl.load(partial_ptr + row + expert, mask=free, other=0.0)
    scores = tl.sigmoid(logits)
    choice = scores + tl.load(bias_ptr + expert, mask=free, other=0.0)
    choice = tl.where(choice == choice, choice, -float("inf"))  # a NaN is nobody's choice
    if GROUPS > 1:
        top = tl.max(tl.where(free, choice, -float("inf")), axis=1)
        first = tl.min(tl.where(free & (choice >= top[:, None]), member, BLOCK_S), axis=1)
        others = free & (member != first[:, None])
        worth = top + tl.max(tl.where(others, choice, -float("inf")), axis=1)
        g = tl.arange(0, BLOCK_G)
        open_groups = g < GROUPS
        for _ in tl.static_range(KEPT):
            open_groups = open_groups & (g != _first_largest(worth, open_groups, g, BLOCK_G))
        # What is still open was not kept; its experts stay eligible, behind all others.
        choice = tl.where(open_groups[:, None], -float("inf"), choice)
    k = tl.arange(0, BLOCK_K)
    weights = tl.zeros((BLOCK_K,), tl.float32)
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    for i in tl.static_range(K):
        best = _first_largest(choice, free, expert, GROUPS * SIZE)
        weights = tl.where(k == i, tl.sum(tl.where(expert == best, scores, 0.0)), weights)
        chosen = tl.where(k == i, best, chosen)
        free = free & (expert != best)
    if NORMALISE:
        weights = weights / (tl.sum(weights) + 1e-20)
    out = token.to(tl.int64) * K + k
    tl.store(weights_ptr + out, weights * factor, mask=k < K)
    tl.store(experts_ptr + out, chosen, mask=k < K)


def route(
    launch: Launch, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """(weights_TK float32, experts_TK int32) in the order of choice; see `ops.Ops.route`."""
    assert gate_ED.dtype == bias_E.dtype == torch.float32, f"{gate_ED.dtype=} {bias_E.dtype=}"
    assert x_TD.stride(-1) == 1 and gate_ED.is_contiguous()
    (tokens, width), count = x_TD.shape, len(gate_ED)
    k, groups, device = config.num_experts_per_tok, config.n_group, x_TD.device
    splits = triton.cdiv(width, SPLIT_D)
    partial = torch.empty(splits, tokens, count, dtype=torch.float32, device=device)
    tile = {"BLOCK_T": 16, "BLOCK_E": 32, "BLOCK_D": min(64, triton.next_power_of_2(width))}
    launch(
        gate_kernel,
        (triton.cdiv(tokens, tile["BLOCK_T"]), triton.cdiv(count, tile["BLOCK_E"]), splits),
        x_TD, gate_ED, partial, x_TD.stride(0), tokens, width, count,
        SPLIT=SPLIT_D, **tile, options={"num_warps": 2, "num_stages": 2},
    )  # fmt: skip
    weights = torch.empty(tokens, k, dtype=torch.float32, device=device)
    experts = torch.empty(tokens, k, dtype=torch.int32, device=device)
    launch(
        choose_kernel,
        (tokens,),
        partial, bias_E, weights, experts, tokens, count, splits, config.routed_scaling_factor,
        GROUPS=groups, KEPT=config.topk_group, SIZE=count // groups, K=k,
        NORMALISE=config.norm_topk_prob, BLOCK_G=triton.next_power_of_2(groups),
        BLOCK_S=triton.next_power_of_2(count // groups), BLOCK_K=triton.next_power_of_2(k),
        options={"num_warps": 1},
    )  # fmt: skip
    return weights, experts
