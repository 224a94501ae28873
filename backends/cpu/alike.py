"""The CPU backend with each row's result the same in every bit, whatever rows are beside it.

The native kernel computes rows so in any case. The libraries behind torch do not: they choose how
to compute a product by the number of its rows. So here every product with a weight has `ROWS` rows,
some of them padding, and attention takes every query by itself, over the keys that it sees. The
rest is elementwise or sums along a row, which torch computes alike in any company but where it uses
one exponential for whole vectors and another for what is left of the numbers behind them.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends import cpu, reference
from glm_portable.backends.cpu import (
    describe,
    device,
    kernel,
    name,
    native,
    pack,
    page_size,
    readable,
)
from glm_portable.backends.reference import choose_scored, quantize_per_token, rms_norm, rope_store
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Step, Weight

__all__ = [
    "attend", "batch_invariant", "describe", "device", "experts", "kernel", "linear", "name",
    "pack", "page_size", "readable", "rms_norm", "rope_store", "route", "silu_mul",
]  # fmt: skip

batch_invariant = True
"""A promise, which `verify ops` holds it to."""

# Of a product: more would waste a decode step of few sequences, fewer read the weights too often.
ROWS = 8
# Numbers up to which torch leaves an elementwise function to one thread (its grain size).
ONE_THREAD = 1 << 15


def linear(x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
    """Products of `ROWS` rows each."""
    return _matmul(_quantize(x_TR, w), w.packed, bias_N)


def silu_mul(x_T2F: Tensor, feeds: Weight | None = None) -> Tensor:
    """As the reference, of few rows at once."""
    return _by_rows(reference.silu_mul, x_T2F, x_T2F.shape[1] // 2)


def route(x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """As the reference, with the gate's product and its sigmoid row by row."""
    library = native.library() if x_TD.dtype == torch.bfloat16 else None
    if library is not None and gate_ED.dtype == torch.float32:
        logits = native.scores(library, x_TD, gate_ED)
    else:
        x = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        logits = _matmul(x, gate_ED.to(x.dtype))
    count = logits.shape[1]
    # With a gap behind each row, no vector holds the numbers of two.
    apart = F.pad(logits, (0, 1))[:, :count]
    return choose_scored(_by_rows(torch.sigmoid, apart, count), bias_E, cfg)


def attend(q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    """Each query by itself: natively in BF16, else in float32 at least."""
    if cache.k_scale != 1 or cache.v_scale != 1:
        plain = KVCache(cache.k_PSGC, cache.v_PSGC)
        return attend(q_THC, plain, step, scale * cache.k_scale) * cache.v_scale
    out, every = torch.empty_like(q_THC), range(len(step.query_ends))
    suited = q_THC.dtype == torch.bfloat16 and q_THC.shape[2] % 32 == 0
    library = native.library() if suited else None
    if library is not None:
        if cache.k_PSGC.dtype != q_THC.dtype:
            cache, step = _widened(cache, step, q_THC.dtype)
        return cpu.attend_native(library, q_THC, cache, step, list(every), scale, out)
    begins = (0, *step.query_ends[:-1])
    for b, begin, end in zip(every, begins, step.query_ends, strict=True):
        _attend_apart(q_THC[begin:end], cache, step, b, scale, out[begin:end])
    return out


def experts(
    x_TD: Tensor,
    gate_up_E2FD: Weight,
    down_EDF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
) -> Tensor:
    """Natively the tokens all of whose choices are this rank's; the others expert by expert.

    So a token's own choices decide which of the two computes it.
    """
    gate_up, down = gate_up_E2FD.packed, down_EDF.packed
    x = _quantize(x_TD, gate_up_E2FD)
    if not isinstance(gate_up, native.Matrices) or down_EDF.dynamic_activations:
        return _experts_apart(x, gate_up_E2FD, down_EDF, weights_TK, experts_TK)
    here_T = ((experts_TK >= 0) & (experts_TK < gate_up.count)).all(-1)
    if here_T.all():
        return native.experts(x, gate_up, down, weights_TK, experts_TK)
    out = torch.empty_like(x_TD)
    out[~here_T] = _experts_apart(
        x[~here_T], gate_up_E2FD, down_EDF, weights_TK[~here_T], experts_TK[~here_T]
    )
    if here_T.any():
        chosen = x[here_T], gate_up, down, weights_TK[here_T], experts_TK[here_T]
        out[here_T] = native.experts(*chosen)
    return out


def _experts_apart(
    x_TD: Tensor, gate_up: Weight, down: Weight, weights_TK: Tensor, experts_TK: Tensor
) -> Tensor:
    """Each chosen expert once, of quantised rows; then the sums in float32, choice by choice."""
    y_TKD = x_TD.new_zeros(*experts_TK.shape, x_TD.shape[1])
    here_TK = (experts_TK >= 0) & (experts_TK < len(gate_up.data))
    for e in sorted(set(experts_TK[here_TK].tolist())):
        tokens, choices = (experts_TK == e).nonzero(as_tuple=True)
        hidden = silu_mul(_matmul(x_TD[tokens], gate_up.packed[e]))
        y_TKD[tokens, choices] = _matmul(_quantize(hidden, down), down.packed[e])
    total = torch.zeros_like(x_TD, dtype=weights_TK.dtype)
    for k in range(experts_TK.shape[1]):
        total += weights_TK[:, k, None] * y_TKD[:, k]
    return total.to(x_TD.dtype)


def _matmul(
    x_TR: Tensor, matrix_NR: Tensor | native.Matrices, bias_N: Tensor | None = None
) -> Tensor:
    """Each product in memory of its own, since some libraries compute by its alignment too."""
    if isinstance(matrix_NR, native.Matrices):
        return matrix_NR.multiply(x_TR, bias_N)
    count = len(x_TR)
    padded = F.pad(x_TR, (0, 0, 0, -count % ROWS))
    blocks = [cpu.matmul(x.clone(), matrix_NR, bias_N) for x in torch.split(padded, ROWS)]
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[:count]


def _by_rows(function: Callable[[Tensor], Tensor], x_TN: Tensor, width: int) -> Tensor:
    """An elementwise function of rows that do not touch, of as many as one thread takes.

    Among threads torch divides the numbers anywhere, and so a row's vectors would begin elsewhere.
    width: numbers of a row.
    """
    rows = max(1, ONE_THREAD // (width + 1))
    return torch.cat([function(part) for part in torch.split(x_TN, rows)])


def _quantize(x_TR: Tensor, w: Weight) -> Tensor:
    return quantize_per_token(x_TR, w.data.dtype) if w.dynamic_activations else x_TR


def _widened(cache: KVCache, step: Step, dtype: torch.dtype) -> tuple[KVCache, Step]:
    """The pages of the step's sequences in another type, and the step over those."""
    used = -(-max(step.kv_lengths) // cache.k_PSGC.shape[1])
    table = step.block_table_BP[:, :used]
    k, v = (x.index_select(0, table.flatten()).to(dtype) for x in (cache.k_PSGC, cache.v_PSGC))
    order = torch.arange(table.numel(), dtype=table.dtype).view_as(table)
    return KVCache(k, v), replace(step, block_table_BP=order)


def _attend_apart(
    q_THC: Tensor, cache: KVCache, step: Step, b: int, scale: float, out_THC: Tensor
) -> None:
    """The queries of one sequence, into `out`. No product has a shape but by its query's place."""
    wide = torch.promote_types(q_THC.dtype, torch.float32)
    length, count = step.kv_lengths[b], len(q_THC)
    k_GLC, v_GLC = (
        cpu.gather(pages, step, [b], length)[0].to(wide) for pages in (cache.k_PSGC, cache.v_PSGC)
    )
    q_TGMC = torch.unflatten(q_THC.to(wide) * scale, 1, (len(k_GLC), -1))
    for t, q_GMC in enumerate(q_TGMC):
        seen = length - count + t + 1
        scores = torch.bmm(q_GMC.clone(), k_GLC[:, :seen].mT)
        out_THC[t] = torch.bmm(scores.softmax(-1), v_GLC[:, :seen]).flatten(0, 1)
