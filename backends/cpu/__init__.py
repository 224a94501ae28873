"""Any x86 or ARM processor. Weights are laid out once; quantised ones are dequantised for that.

BF16 on a processor with AVX512-BF16 runs on our own kernel (`native.cpp`), which one compiler call
makes at the first start: routed experts are one call, and a row's result is the same in every bit
whatever rows are beside it. Other types, and machines without the compiler or the instructions,
use oneDNN's blocked layout, where neighbours change a row through the blocking of the products,
which oneDNN picks by the number of rows; `rows_alike()` is the backend that does without that.
`kernel()` tells which of the two it is.

The packed weight is kept instead of the plain one. Sums over a token's experts run in its own
order of choice.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from ctypes import CDLL
from dataclasses import replace
from importlib import import_module
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.backends._host import processor
from glm_portable.backends.cpu import native
from glm_portable.backends.reference import (
    choose,
    quantize_per_token,
    rms_norm,
    rope_store,
    silu_mul,
)
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Ops, Step, Weight

__all__ = [
    "attend", "describe", "device", "experts", "kernel", "linear", "name", "pack", "page_size",
    "readable", "rms_norm", "rope_store", "route", "rows_alike", "silu_mul",
]  # fmt: skip

name = "cpu"
device = torch.device("cpu")
page_size = 16

# oneDNN sizes its blocks by a row count known in advance; measured, the hint changes little.
ROWS_HINT = 8
# Up to here a sequence's queries ride in one batch with other sequences (decode, verify).
FEW_QUERIES = 8
# Queries per block of a long prefill: the scores of a block stay in the cache.
QUERY_BLOCK = 64
# Up to here all experts' rows go through the activation together, which saves small calls; above,
# each expert's rows stay in the cache from its first product to its last.
FEW_TOKENS = 16


def kernel() -> str:
    """What multiplies BF16 matrices here; builds the native kernel if that has not been done."""
    return "oneDNN" if native.library() is None else "native AVX512-BF16"


def rows_alike() -> Ops:
    """This backend, but that a row's bits do not depend on the rows beside it."""
    return cast(Ops, import_module("glm_portable.backends.cpu.alike"))


def describe() -> dict[str, str]:
    """The processor, threads, and what multiplies BF16."""
    threads = str(torch.get_num_threads())
    return {"chip": processor(), "threads": threads, "BF16 products": kernel()}


def pack(w: Weight) -> Weight:
    """Dequantise to the model's dtype and lay out; `data` stays as a shape alone."""
    library = native.library() if w.dtype == torch.bfloat16 else None
    packed: object
    if library is not None:
        packed = _lay_out(w, library)
    elif w.data.dim() == 3:
        packed = tuple(_reorder(one.dequantize()) for one in _each(w))
    else:
        packed = _reorder(w.dequantize())
    return replace(w, data=torch.empty_like(w.data, device="meta"), scale=None, packed=packed)


def readable(x: Tensor) -> Tensor:
    """Out of oneDNN's layout."""
    return x.to_dense() if x.is_mkldnn else x


def linear(x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
    """One product with the packed matrix, the bias inside."""
    return matmul(_quantize(x_TR, w), w.packed, bias_N)


def route(x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """As the reference, whose product depends on the number of rows in its last bits."""
    library = native.library() if x_TD.dtype == torch.bfloat16 else None
    if library is None or gate_ED.dtype != torch.float32:
        return reference.route(x_TD, gate_ED, bias_E, cfg)
    return choose(native.scores(library, x_TD, gate_ED), bias_E, cfg)


def attend(q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    """Each long query by itself, the others natively token by token, or batched by length."""
    if cache.k_scale != 1 or cache.v_scale != 1:
        plain = KVCache(cache.k_PSGC, cache.v_PSGC)
        return attend(q_THC, plain, step, scale * cache.k_scale) * cache.v_scale
    few, out = [], torch.empty_like(q_THC)
    begins = (0, *step.query_ends[:-1])
    for b, (begin, end) in enumerate(zip(begins, step.query_ends, strict=True)):
        if end - begin > FEW_QUERIES:
            out[begin:end] = _attend_long(q_THC[begin:end], cache, step, b, scale)
        else:
            few.append(b)
    if not few:
        return out
    types = {q_THC.dtype, cache.k_PSGC.dtype}
    suited = types == {torch.bfloat16} and q_THC.shape[2] % 32 == 0
    library = native.library() if suited else None
    if library is not None:
        return attend_native(library, q_THC, cache, step, few, scale, out)
    return _attend_batched(q_THC, cache, step, few, scale, out)


def experts(
    x_TD: Tensor,
    gate_up_E2FD: Weight,
    down_EDF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
) -> Tensor:
    """Each chosen expert once, over the rows of the tokens that chose it; the sum in float32."""
    gate_up, down, count = gate_up_E2FD.packed, down_EDF.packed, len(gate_up_E2FD.data)
    local = (experts_TK >= 0) & (experts_TK < count)
    if not local.all():
        # Other ranks' choices become those of one expert more, which has no rows.
        experts_TK = experts_TK.where(local, count)
    elif isinstance(gate_up, native.Matrices) and not down_EDF.dynamic_activations:
        return native.experts(_quantize(x_TD, gate_up_E2FD), gate_up, down, weights_TK, experts_TK)
    return _experts_one_by_one(x_TD, gate_up_E2FD, down_EDF, weights_TK, experts_TK)


def _experts_one_by_one(
    x_TD: Tensor,
    gate_up_E2FD: Weight,
    down_EDF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
) -> Tensor:
    """With the hidden layer in torch's hands, where it is quantised for the second product.

    Choices of expert E, which does not exist, come last in order and are left at 0.
    """
    (tokens, k), count = experts_TK.shape, len(gate_up_E2FD.data)
    by_expert, order = experts_TK.flatten().sort(stable=True)
    here = int((by_expert < count).sum())
    if not here:
        return torch.zeros_like(x_TD)
    by_expert, order = by_expert[:here], order[:here]
    chosen, counts = (c.tolist() for c in torch.unique_consecutive(by_expert, return_counts=True))
    rows = torch.split(_quantize(x_TD, gate_up_E2FD).index_select(0, order // k), counts)
    gate_ups = [gate_up_E2FD.packed[e] for e in chosen]
    downs = [down_EDF.packed[e] for e in chosen]
    y = x_TD.new_zeros(tokens * k, x_TD.shape[1])
    if tokens <= FEW_TOKENS:
        hidden = silu_mul(torch.cat([matmul(x, p) for x, p in zip(rows, gate_ups, strict=True)]))
        split = torch.split(_quantize(hidden, down_EDF), counts)
        y.index_copy_(
            0, order, torch.cat([matmul(h, p) for h, p in zip(split, downs, strict=True)])
        )
    else:
        places = torch.split(order, counts)
        for x, place, gate_up, down in zip(rows, places, gate_ups, downs, strict=True):
            hidden = silu_mul(matmul(x, gate_up))
            y.index_copy_(0, place, matmul(_quantize(hidden, down_EDF), down))
    wide = y.view(tokens, k, -1).to(weights_TK.dtype)
    return torch.bmm(weights_TK.unsqueeze(1), wide).squeeze(1).to(x_TD.dtype)


def _each(w: Weight) -> Iterator[Weight]:
    """The matrices of a weight one by one, so that one at a time is dequantised."""
    if w.data.dim() == 2:
        yield w
        return
    for e, data in enumerate(w.data):
        scale = None if w.scale is None else w.scale[e]
        yield Weight(data, w.dtype, scale, w.block, w.dynamic_activations)


def _lay_out(w: Weight, library: CDLL) -> native.Matrices:
    """For the native kernel."""
    count = len(w.data) if w.data.dim() == 3 else 1
    packed = native.Matrices.empty(library, count, *w.data.shape[-2:])
    if w.scale is None:
        packed.fill(w.dequantize().view(count, *w.data.shape[-2:]))
    else:
        packed.fill_coded(w)
    return packed


def _reorder(matrix_NR: Tensor) -> Tensor:
    """oneDNN's layout where it has one for this type on this processor, else the plain matrix."""
    if not torch._C._has_mkldnn:
        return matrix_NR.clone()
    takes = {
        torch.float32: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    if not takes.get(matrix_NR.dtype, False):
        return matrix_NR.clone()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix_NR.contiguous(), ROWS_HINT)
    return packed


def matmul(
    x_TR: Tensor, matrix_NR: Tensor | native.Matrices, bias_N: Tensor | None = None
) -> Tensor:
    """x @ matrix.T + bias, of a matrix as `pack` has laid it out or a plain one: (T, N)."""
    if isinstance(matrix_NR, native.Matrices):
        return matrix_NR.multiply(x_TR, bias_N)
    if matrix_NR.is_mkldnn:
        multiply = torch.ops.mkldnn._linear_pointwise.default  # naming it spares a look-up a call
        y: Tensor = multiply(x_TR, matrix_NR, bias_N, "none", [], "")
        return y
    return F.linear(x_TR, matrix_NR, bias_N)


def _quantize(x_TR: Tensor, w: Weight) -> Tensor:
    return quantize_per_token(x_TR, w.data.dtype) if w.dynamic_activations else x_TR


def attend_native(
    library: CDLL,
    q_THC: Tensor,
    cache: KVCache,
    step: Step,
    few: list[int],
    scale: float,
    out: Tensor,
) -> Tensor:
    """Sequences `few`, token by token without copies of their keys, into `out`."""
    begins = (0, *step.query_ends[:-1])
    rows: list[int] = []
    lengths: list[int] = []
    tokens: list[int] = []
    for b in few:
        count = step.query_ends[b] - begins[b]
        rows += [b] * count
        lengths += range(step.kv_lengths[b] - count + 1, step.kv_lengths[b] + 1)
        tokens += range(begins[b], step.query_ends[b])
    every = len(tokens) == len(q_THC)
    found = native.attend(
        library,
        q_THC if every else q_THC[tokens],
        cache,
        step.block_table_BP,
        torch.tensor(rows, dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
        scale,
    )
    if every:
        return found
    out[tokens] = found
    return out


def _attend_batched(
    q_THC: Tensor, cache: KVCache, step: Step, few: list[int], scale: float, out: Tensor
) -> Tensor:
    """Sequences `few` in batches of similar length, into `out`."""
    begins = (0, *step.query_ends[:-1])
    batches: dict[tuple[int, int], list[int]] = defaultdict(list)
    for b in few:
        # Padding to the longest of a batch at most doubles its keys.
        batches[step.query_ends[b] - begins[b], step.kv_lengths[b].bit_length()].append(b)
    for (count, _), rows in batches.items():
        if count * len(rows) == len(q_THC):  # the usual decode: the whole step as it stands
            q_BTHC = torch.unflatten(q_THC, 0, (len(rows), count))
            return _attend_batch(q_BTHC, cache, step, rows, scale).flatten(0, 1)
        tokens = torch.tensor([begins[b] for b in rows]).unsqueeze(1) + torch.arange(count)
        out[tokens] = _attend_batch(q_THC[tokens], cache, step, rows, scale)
    return out


def _attend_batch(
    q_BTHC: Tensor, cache: KVCache, step: Step, rows: Sequence[int], scale: float
) -> Tensor:
    """Equally many last queries of several sequences: (B, T, H, C).

    The query heads of a group become rows of one product with its keys, so that no key is read or
    copied once a head.
    """
    b, t, h, c = q_BTHC.shape
    lengths = [step.kv_lengths[row] for row in rows]
    k_BGLC, v_BGLC = (
        gather(pages, step, rows, max(lengths)) for pages in (cache.k_PSGC, cache.v_PSGC)
    )
    groups = k_BGLC.shape[1]
    q = torch.unflatten(q_BTHC, 2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(b, groups, -1, c)
    mask = None
    if t > 1 or min(lengths) < max(lengths):
        last = torch.tensor(lengths).view(b, 1, 1) - t + torch.arange(t).view(1, t, 1)
        hidden = torch.arange(max(lengths)) > last  # (B, T, L)
        mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, float("-inf"))
        mask = mask.repeat(1, h // groups, 1).unsqueeze(1)
    y = F.scaled_dot_product_attention(
        q, k_BGLC.to(q.dtype), v_BGLC.to(q.dtype), attn_mask=mask, scale=scale
    )
    return y.view(b, groups, -1, t, c).permute(0, 3, 1, 2, 4).reshape(b, t, h, c)


def _attend_long(q_THC: Tensor, cache: KVCache, step: Step, b: int, scale: float) -> Tensor:
    """Many queries of one sequence, in blocks that skip the keys after their last query.

    Plain products took 0.4 to 0.6 times as long as torch's flash attention without AMX. They round
    the scores to the model's dtype, as the reference does, which flash attention does not (twice
    the error in BF16); the softmax itself is computed in float32.
    """
    out, length, count = torch.empty_like(q_THC), step.kv_lengths[b], len(q_THC)
    k_GLC, v_GLC = (
        gather(pages, step, [b], length)[0].to(q_THC.dtype)
        for pages in (cache.k_PSGC, cache.v_PSGC)
    )
    q_GMTC = torch.unflatten(q_THC, 1, (len(k_GLC), -1)).permute(1, 2, 0, 3)
    out_GMTC = torch.unflatten(out, 1, (len(k_GLC), -1)).permute(1, 2, 0, 3)
    for begin in range(0, count, QUERY_BLOCK):
        q = q_GMTC[:, :, begin : begin + QUERY_BLOCK]
        size = q.shape[2]
        end = length - count + begin + size
        scores = q_THC.new_empty(len(k_GLC), q.shape[1] * size, end)
        torch.baddbmm(scores, q.flatten(1, 2), k_GLC[:, :end].mT, beta=0, alpha=scale, out=scores)
        future = torch.ones(size, size, dtype=torch.bool).triu_(1)
        torch.unflatten(scores, 1, (-1, size))[..., end - size :].masked_fill_(
            future, float("-inf")
        )
        y = torch.bmm(scores.softmax(-1), v_GLC[:, :end])
        out_GMTC[:, :, begin : begin + size] = torch.unflatten(y, 1, (-1, size))
    return out


def gather(pages_PSGC: Tensor, step: Step, rows: Sequence[int], length: int) -> Tensor:
    """The cached rows of some sequences, padded to one length: (B, G, L, C)."""
    used = -(-length // pages_PSGC.shape[1])
    table = step.block_table_BP[list(rows), :used]
    found = pages_PSGC.index_select(0, table.flatten()).view(len(rows), -1, *pages_PSGC.shape[2:])
    return found[:, :length].transpose(1, 2)
