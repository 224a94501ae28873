"""Keys and values into their slots of the paged cache, in the cache's type."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch
from glm_portable.ops import KVCache


@triton.jit
def store_kernel(
    k_ptr, v_ptr, k_pages_ptr, v_pages_ptr, slots_ptr, k_stride, v_stride,
    k_scale, v_scale, WIDTH, TOP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token a program. With TOP above 0 the cache is FP8 and holds number / scale."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < WIDTH
    k = tl.load(k_ptr + token * k_stride + offs, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + token * v_stride + offs, mask=mask, other=0.0).to(tl.float32)
    if TOP > 0:
        k = tl.clamp(k / k_scale, -TOP, TOP)
        v = tl.clamp(v / v_scale, -TOP, TOP)
    dtype = k_pages_ptr.dtype.element_ty
    tl.store(k_pages_ptr + slot * WIDTH + offs, k.to(dtype), mask=mask)
    tl.store(v_pages_ptr + slot * WIDTH + offs, v.to(dtype), mask=mask)


def store(
    launch: Launch,
    k_TGC: Tensor,
    v_TGC: Tensor,
    cache: KVCache,
    slots_T: Tensor,
) -> None:
    """Write each token's key and value, divided by their scales where the pages are FP8.

    Numbers beyond the largest FP8 become the largest. k and v may be views into a wider row;
    slot = page * slots per page + offset, and fits nowhere but in the pages.
    """
    tokens, groups, size = k_TGC.shape
    assert k_TGC.stride()[1:] == v_TGC.stride()[1:] == (size, 1), f"{k_TGC.stride()=}"
    k_PSGC, v_PSGC = cache.k_PSGC, cache.v_PSGC
    assert k_PSGC.is_contiguous() and v_PSGC.is_contiguous()
    fp8 = k_PSGC.dtype.itemsize == 1
    width = groups * size
    launch(
        store_kernel,
        (tokens,),
        k_TGC, v_TGC, k_PSGC, v_PSGC, slots_T, k_TGC.stride(0), v_TGC.stride(0),
        cache.k_scale, cache.v_scale, width, TOP=torch.finfo(k_PSGC.dtype).max if fp8 else 0.0,
        BLOCK=triton.next_power_of_2(width), options={"num_warps": 4},
    )  # fmt: skip
