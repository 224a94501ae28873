"""From one row of projections to attention's inputs: per-head RMS norm, rotary embedding (Su et al.
2021) of the first part of each head, and keys and values into their slots of the paged cache.

One launch instead of two, and rotated keys are written once, to where attention reads them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch
from glm_portable.ops import KVCache

HEADS = 8
"""Heads a program takes at most."""


@triton.jit
def _stored(x, scale, TOP: tl.constexpr, DTYPE: tl.constexpr):
    """Numbers in float32 as the cache holds them: with TOP above 0 as FP8 of x / scale.

    A NaN stays one: a cache that hid it would answer as if nothing were wrong.
    """
    if TOP > 0:
        x = tl.clamp(tl.div_rn(x, scale), -TOP, TOP, propagate_nan=tl.PropagateNan.ALL)
    return x.to(DTYPE)


@triton.jit
def _turn(
    x_ptr, out_ptr, w_ptr, cos, sin, head_stride, first_head, heads, eps, scale,
    C: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, TOP: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Some heads of one token. A head is read in three parts, so that no lane needs another's:
    dimension i of the first two is rotated against the same of the other, the rest is kept."""
    head = first_head + tl.arange(0, BLOCK_H)[:, None]
    i = tl.arange(0, BLOCK_HALF)[None, :]
    j = tl.arange(0, BLOCK_REST)[None, :]
    turned = (head < heads) & (i < HALF)
    kept = (head < heads) & (j < C - 2 * HALF)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x_ptr += head * head_stride
    low = tl.load(x_ptr + i, mask=turned, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + HALF + i, mask=turned, other=0.0).to(tl.float32)
    rest = tl.load(x_ptr + 2 * HALF + j, mask=kept, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
        size = tl.rsqrt((square + tl.sum(rest * rest, axis=1)) / C + eps)[:, None]
        w_low = tl.load(w_ptr + i, mask=i < HALF, other=0.0).to(tl.float32)
        w_high = tl.load(w_ptr + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
        w_rest = tl.load(w_ptr + 2 * HALF + j, mask=j < C - 2 * HALF, other=0.0).to(tl.float32)
        # The model rounds after the norm and after its weight.
        low = ((low * size).to(dtype).to(tl.float32) * w_low).to(dtype).to(tl.float32)
        high = ((high * size).to(dtype).to(tl.float32) * w_high).to(dtype).to(tl.float32)
        rest = ((rest * size).to(dtype).to(tl.float32) * w_rest).to(dtype).to(tl.float32)
    # And after the rotation, before FP8 pages round once more.
    turned_low = (low * cos - high * sin).to(dtype).to(tl.float32)
    turned_high = (high * cos + low * sin).to(dtype).to(tl.float32)
    out_dtype: tl.constexpr = out_ptr.dtype.element_ty
    out_ptr += head * C
    tl.store(out_ptr + i, _stored(turned_low, scale, TOP, out_dtype), mask=turned)
    tl.store(out_ptr + HALF + i, _stored(turned_high, scale, TOP, out_dtype), mask=turned)
    tl.store(out_ptr + 2 * HALF + j, _stored(rest, scale, TOP, out_dtype), mask=kept)


@triton.jit
def rope_store_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, k_pages_ptr, v_pages_ptr, slots_ptr,
    q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr,
    q_stride, q_head_stride, k_stride, v_stride, H, G, eps, k_scale, v_scale,
    C: tl.constexpr, HALF: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
    TOP: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Programs (token, block of heads): the blocks of query heads, then those of keys and values.

    TOP: the largest number of FP8 pages, 0 for pages in a wider type.
    """
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    q_blocks = tl.cdiv(H, BLOCK_H)
    i = tl.arange(0, BLOCK_HALF)[None, :]
    cos = tl.load(cos_ptr + token * (2 * HALF) + i, mask=i < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * (2 * HALF) + i, mask=i < HALF, other=0.0).to(tl.float32)
    if block < q_blocks:
        _turn(
            q_ptr + token * q_stride, out_ptr + token * H * C, q_norm_ptr, cos, sin,
            q_head_stride, block * BLOCK_H, H, eps, k_scale, C, HALF, Q_NORM, 0.0,
            BLOCK_H, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
    else:
        first = (block - q_blocks) * BLOCK_H
        row = tl.load(slots_ptr + token).to(tl.int64) * G * C
        _turn(
            k_ptr + token * k_stride, k_pages_ptr + row, k_norm_ptr, cos, sin,
            C, first, G, eps, k_scale, C, HALF, K_NORM, TOP,
            BLOCK_H, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
        head = first + tl.arange(0, BLOCK_H)[:, None]
        c = tl.arange(0, BLOCK_C)[None, :]
        mask = (head < G) & (c < C)
        v = tl.load(v_ptr + token * v_stride + head * C + c, mask=mask, other=0.0).to(tl.float32)
        stored = _stored(v, v_scale, TOP, v_pages_ptr.dtype.element_ty)
        tl.store(v_pages_ptr + row + head * C + c, stored, mask=mask)


def rope_store(
    launch: Launch,
    q_THC: Tensor,
    k_TGC: Tensor,
    v_TGC: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
    cache: KVCache,
    slots_T: Tensor,
    q_norm_C: Tensor | None = None,
    k_norm_C: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """The rotated queries, contiguous; keys and values go to their slots. See `ops.Ops.rope_store`.

    q, k and v may be views into a wider row. Each angle stands twice in cos and sin; the first half
    is read. FP8 pages hold number / scale, and the largest FP8 for what lies beyond it.
    """
    tokens, heads, size = q_THC.shape
    groups, rotary = k_TGC.shape[1], cos_TC.shape[-1]
    k_PSGC, v_PSGC = cache.k_PSGC, cache.v_PSGC
    assert q_THC.stride(-1) == 1, f"{q_THC.stride()=}"
    assert k_TGC.stride()[1:] == v_TGC.stride()[1:] == (size, 1), f"{k_TGC.stride()=}"
    assert k_PSGC.is_contiguous() and v_PSGC.is_contiguous() and k_PSGC.dtype == v_PSGC.dtype
    out = torch.empty(q_THC.shape, dtype=q_THC.dtype, device=q_THC.device)
    block = min(HEADS, triton.next_power_of_2(heads))
    launch(
        rope_store_kernel,
        (tokens, triton.cdiv(heads, block) + triton.cdiv(groups, block)),
        q_THC, k_TGC, v_TGC, out, k_PSGC, v_PSGC, slots_T,
        cos_TC if q_norm_C is None else q_norm_C, cos_TC if k_norm_C is None else k_norm_C,
        cos_TC.contiguous(), sin_TC.contiguous(),
        q_THC.stride(0), q_THC.stride(1), k_TGC.stride(0), v_TGC.stride(0), heads, groups, eps,
        cache.k_scale, cache.v_scale,
        C=size, HALF=rotary // 2, Q_NORM=q_norm_C is not None, K_NORM=k_norm_C is not None,
        TOP=torch.finfo(k_PSGC.dtype).max if k_PSGC.dtype.itemsize == 1 else 0.0,
        BLOCK_H=block, BLOCK_HALF=triton.next_power_of_2(rotary // 2),
        BLOCK_REST=triton.next_power_of_2(max(1, size - rotary)),
        BLOCK_C=triton.next_power_of_2(size), options={"num_warps": 2},
    )  # fmt: skip
    return out
