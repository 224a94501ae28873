"""Per-head RMS norm and rotary embedding (Su et al. 2021) of the first part of each head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch

HEADS = 8
"""Heads a program takes at most."""


@triton.jit
def _turn(
    x_ptr, out_ptr, w_ptr, cos, sin, head_stride, first_head, heads, eps,
    C: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Some heads of one token. A head is read in three parts, so that no lane needs another's:
    dimension i of the first two is rotated against the same of the other, the rest is kept."""
    head = first_head + tl.arange(0, BLOCK_H)[:, None]
    i = tl.arange(0, BLOCK_HALF)[None, :]
    j = tl.arange(0, BLOCK_REST)[None, :]
    turned = (head < heads) & (i < HALF)
    kept = (head < heads) & (j < C - 2 * HALF)
    x_ptr += head * head_stride
    low = tl.load(x_ptr + i, mask=turned, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + HALF + i, mask=turned, other=0.0).to(tl.float32)
    rest = tl.load(x_ptr + 2 * HALF + j, mask=kept, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
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
    out_ptr += head * C
    tl.store(out_ptr + i, (low * cos - high * sin).to(dtype), mask=turned)
    tl.store(out_ptr + HALF + i, (high * cos + low * sin).to(dtype), mask=turned)
    tl.store(out_ptr + 2 * HALF + j, rest.to(dtype), mask=kept)


@triton.jit
def rope_kernel(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, H, G, eps,
    C: tl.constexpr, HALF: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Programs (token, block of heads): first the blocks of query heads, then those of keys."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    q_blocks = tl.cdiv(H, BLOCK_H)
    i = tl.arange(0, BLOCK_HALF)[None, :]
    cos = tl.load(cos_ptr + token * (2 * HALF) + i, mask=i < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * (2 * HALF) + i, mask=i < HALF, other=0.0).to(tl.float32)
    if block < q_blocks:
        _turn(
            q_ptr + token * q_stride, q_out_ptr + token * H * C, q_norm_ptr, cos, sin,
            q_head_stride, block * BLOCK_H, H, eps, C, HALF, Q_NORM,
            BLOCK_H, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip
    else:
        _turn(
            k_ptr + token * k_stride, k_out_ptr + token * G * C, k_norm_ptr, cos, sin,
            k_head_stride, (block - q_blocks) * BLOCK_H, G, eps, C, HALF, K_NORM,
            BLOCK_H, BLOCK_HALF, BLOCK_REST,
        )  # fmt: skip


def rope(
    launch: Launch,
    q_THC: Tensor,
    k_TGC: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
    q_norm_C: Tensor | None = None,
    k_norm_C: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Contiguous (q, k); q and k may be views into a wider row. See `ops.Ops.rope`.

    Each angle stands twice in cos and sin; the first half is read.
    """
    assert q_THC.stride(-1) == k_TGC.stride(-1) == 1, f"{q_THC.stride()=} {k_TGC.stride()=}"
    tokens, heads, size = q_THC.shape
    groups, rotary = k_TGC.shape[1], cos_TC.shape[-1]
    q, k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_THC, k_TGC))
    block = min(HEADS, triton.next_power_of_2(heads))
    launch(
        rope_kernel,
        (tokens, triton.cdiv(heads, block) + triton.cdiv(groups, block)),
        q_THC, k_TGC, q, k,
        cos_TC if q_norm_C is None else q_norm_C, cos_TC if k_norm_C is None else k_norm_C,
        cos_TC.contiguous(), sin_TC.contiguous(),
        q_THC.stride(0), q_THC.stride(1), k_TGC.stride(0), k_TGC.stride(1), heads, groups, eps,
        C=size, HALF=rotary // 2, Q_NORM=q_norm_C is not None, K_NORM=k_norm_C is not None,
        BLOCK_H=block, BLOCK_HALF=triton.next_power_of_2(rotary // 2),
        BLOCK_REST=triton.next_power_of_2(max(1, size - rotary)), options={"num_warps": 2},
    )  # fmt: skip
    return q, k
