"""The meaning of every op: plain PyTorch, in the dtype of its inputs (float32 and float64 to judge
by, BF16 to compare rounding with). Reductions that the model defines in float32 are at least that.
"""

import sys
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends._host import processor
from glm_portable.backends._one_by_one import OneByOne
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Ops, Step, Weight

name = "reference"
device = torch.device("cpu")
page_size = 16

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def describe() -> dict[str, str]:
    """The processor."""
    return {"chip": processor()}


def rows_alike() -> Ops:
    """These, of one token after the other."""
    return OneByOne(cast(Ops, sys.modules[__name__]), describe)


def pack(w: Weight) -> Weight:
    """The layout on disk is the layout here."""
    return w


def linear(x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
    """x @ w.T + bias, with the activations rounded per token where the checkpoint asks for it."""
    x = quantize_per_token(x_TR, w.data.dtype) if w.dynamic_activations else x_TR
    return F.linear(x, w.dequantize(), bias_N)


def quantize_per_token(x_TR: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to `dtype` with one scale a row, max|x| / the largest value, and scaled back.

    The dynamic per-token scheme of compressed-tensors. A row of zeros stays zero.
    """
    top = FP8_MAX if dtype == torch.float8_e4m3fn else 127.0
    wide = _wide(x_TR)
    scale = (wide.abs().amax(-1, keepdim=True) / top).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = (wide / scale).clamp(-top, top)
    rounded = scaled.to(dtype) if dtype == torch.float8_e4m3fn else scaled.round()
    return (rounded.to(wide.dtype) * scale).to(x_TR.dtype)


def rms_norm(
    x_TD: Tensor,
    w_D: Tensor,
    eps: float,
    residual_TD: Tensor | None = None,
    feeds: Weight | None = None,
) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * w, the mean in float32 (Zhang and Sennrich 2019)."""
    total = x_TD if residual_TD is None else x_TD + residual_TD
    return _rms(total, w_D, eps), total


def silu_mul(x_T2F: Tensor, feeds: Weight | None = None) -> Tensor:
    """SwiGLU's gate (Shazeer 2020)."""
    gate, up = x_T2F.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope(
    q_THC: Tensor,
    k_TGC: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
    q_norm_C: Tensor | None = None,
    k_norm_C: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Per-head RMS norm, then rotary embedding (Su et al. 2021) on the first part of each head."""
    q = q_THC if q_norm_C is None else _rms(q_THC, q_norm_C, eps)
    k = k_TGC if k_norm_C is None else _rms(k_TGC, k_norm_C, eps)
    return _rotate(q, cos_TC, sin_TC), _rotate(k, cos_TC, sin_TC)


def store(k_TGC: Tensor, v_TGC: Tensor, cache: KVCache, step: Step) -> None:
    """Slot number = page * slots per page + offset, so the pages flatten to one row of slots."""
    for x_TGC, pages, unit in (
        (k_TGC, cache.k_PSGC, cache.k_scale),
        (v_TGC, cache.v_PSGC, cache.v_scale),
    ):
        if pages.dtype.itemsize == 1:
            top = torch.finfo(pages.dtype).max
            x_TGC = (_wide(x_TGC) / unit).clamp(-top, top)
        pages.flatten(0, 1)[step.slots_T] = x_TGC.to(pages.dtype)


def rope_store(
    q_THC: Tensor,
    k_TGC: Tensor,
    v_TGC: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
    cache: KVCache,
    step: Step,
    q_norm_C: Tensor | None = None,
    k_norm_C: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """`rope`, then `store`."""
    q_THC, k_TGC = rope(q_THC, k_TGC, cos_TC, sin_TC, q_norm_C, k_norm_C, eps)
    store(k_TGC, v_TGC, cache, step)
    return q_THC


def attend(q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    """softmax(q k^T * scale + causal mask) v, one sequence at a time, softmax in float32."""
    out = torch.empty_like(q_THC)
    begin = 0
    for b, (end, length) in enumerate(zip(step.query_ends, step.kv_lengths, strict=True)):
        k_LGC = _gather(cache.k_PSGC, step, b, length, cache.k_scale, q_THC.dtype)
        v_LGC = _gather(cache.v_PSGC, step, b, length, cache.v_scale, q_THC.dtype)
        q = q_THC[begin:end]
        q = q.reshape(len(q), k_LGC.shape[1], -1, q.shape[-1])  # (T, G, H / G, C)
        scores = torch.einsum("tgmc,lgc->gmtl", q, k_LGC) * scale
        query = torch.arange(length - (end - begin), length).unsqueeze(1)
        scores = scores.masked_fill(torch.arange(length) > query, float("-inf"))
        p = _wide(scores).softmax(-1).to(q.dtype)
        out[begin:end] = torch.einsum("gmtl,lgc->tgmc", p, v_LGC).flatten(1, 2)
        begin = end
    return out


def route(x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """Sigmoid scores, group-limited choice by score + bias (DeepSeek-V3, arXiv:2412.19437)."""
    x = _wide(x_TD)
    return choose(F.linear(x, gate_ED.to(x.dtype)), bias_E, cfg)


def choose(logits_TE: Tensor, bias_E: Tensor, cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """The part of `route` that follows the gate's product."""
    return choose_scored(logits_TE.sigmoid(), bias_E, cfg)


def choose_scored(scores: Tensor, bias_E: Tensor, cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """The part of `route` that follows the sigmoid."""
    choice = scores + bias_E.to(scores.dtype)
    if cfg.n_group > 1:
        groups = choice.view(len(choice), cfg.n_group, -1)
        best = groups.topk(2, dim=-1).values.sum(-1)
        keep = torch.zeros_like(best).scatter_(1, _first_largest(best, cfg.topk_group), 1.0).bool()
        choice = groups.masked_fill(~keep.unsqueeze(-1), float("-inf")).flatten(-2)
    experts = _first_largest(choice, cfg.num_experts_per_tok)
    return mix(scores, experts, cfg), experts.to(torch.int32)


def mix(scores_TE: Tensor, experts_TK: Tensor, cfg: ModelConfig) -> Tensor:
    """The weights (T, K) of chosen experts, by their scores alone."""
    weights = scores_TE.gather(1, experts_TK)
    if cfg.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * cfg.routed_scaling_factor


def experts(
    x_TD: Tensor,
    gate_up_E2FD: Weight,
    down_EDF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
) -> Tensor:
    """One expert after the other over the tokens that chose it; the sum in float32 at least."""

    def one(e: int) -> tuple[Weight, Weight]:
        return _one(gate_up_E2FD, e), _one(down_EDF, e)

    return mixture(x_TD, one, len(gate_up_E2FD.data), weights_TK, experts_TK)


def mixture(
    x_TD: Tensor,
    one: Callable[[int], tuple[Weight, Weight]],
    count: int,
    weights_TK: Tensor,
    experts_TK: Tensor,
) -> Tensor:
    """`experts`, of which `one` gives the weights when their turn has come; there are `count`."""
    out = torch.zeros_like(_wide(x_TD))
    for e in sorted(set(experts_TK.flatten().tolist()) & set(range(count))):
        gate_up, down = one(e)
        tokens, choice = (experts_TK == e).nonzero(as_tuple=True)
        hidden = silu_mul(linear(x_TD[tokens], gate_up))
        y = _wide(linear(hidden, down))
        out.index_add_(0, tokens, y * weights_TK[tokens, choice, None].to(y.dtype))
    return out.to(x_TD.dtype)


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * w


def _rotate(x_TMC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    cos, sin = cos_TC.unsqueeze(1), sin_TC.unsqueeze(1)
    width = cos.shape[-1]
    turned, kept = x_TMC[..., :width], x_TMC[..., width:]
    low, high = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-high, low], dim=-1) * sin, kept], dim=-1)


def _gather(
    pages_PSGC: Tensor, step: Step, b: int, length: int, scale: float, dtype: torch.dtype
) -> Tensor:
    """The first `length` cached rows of sequence b times their scale: (length, G, C)."""
    size = pages_PSGC.shape[1]
    pages = step.block_table_BP[b, : -(-length // size)]
    rows = pages_PSGC[pages.long()].flatten(0, 1)[:length].to(dtype)
    return rows if scale == 1 else (_wide(rows) * scale).to(dtype)


def _first_largest(x: Tensor, k: int) -> Tensor:
    """Indices of the k largest of each row; of equal values the lower index comes first."""
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def _one(w: Weight, e: int) -> Weight:
    """Expert e of a stacked weight."""
    scale = None if w.scale is None else w.scale[e]
    return Weight(w.data[e], w.dtype, scale, w.block, w.dynamic_activations)
