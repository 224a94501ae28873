"""Activations to FP8 with one scale a token (the dynamic scheme of compressed-tensors).

scale = max|x| / top, clamped to the smallest normal float32 so that a row of zeros stays zero;
code = x / scale, rounded to nearest even. `top` is 448 on OCP chips and 224 on FNUZ chips, where
the codes are then the same and the scales twice as large (see `target.Target.fp8_top`). A row that
holds an infinity or a NaN gets a NaN for its scale, so that it stays visible in the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch
from glm_portable.kernels.target import Target


@triton.jit
def quantized(x, TOP: tl.constexpr):
    """(codes still in float32, scale) of one row in float32, in which hidden lanes are 0.

    The divisions are IEEE's: an approximate one moves values that lie on a rounding boundary.
    """
    # As integers magnitudes have the same order, with NaN on top, which a maximum of floats skips.
    largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0).to(tl.float32, bitcast=True)
    scale = tl.maximum(tl.div_rn(largest, tl.zeros_like(largest) + TOP), 1.1754943508222875e-38)
    scale = tl.where(largest < float("inf"), scale, float("nan"))
    return tl.clamp(tl.div_rn(x, scale), -TOP, TOP), scale


@triton.jit
def quantize_kernel(
    x_ptr, out_ptr, scale_ptr, x_stride, R, TOP: tl.constexpr, BLOCK_R: tl.constexpr
):
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_R)
    mask = offs < R
    x = tl.load(x_ptr + row * x_stride + offs, mask=mask, other=0.0).to(tl.float32)
    codes, scale = quantized(x, TOP)
    tl.store(out_ptr + row * R + offs, codes.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row, scale)


def quantize(launch: Launch, target: Target, x_TR: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (T, R) in the chip's FP8, scale (T, 1) float32), codes * scale ~ x."""
    assert x_TR.stride(-1) == 1, f"{x_TR.stride()=}"
    tokens, width = x_TR.shape
    codes = torch.empty(x_TR.shape, dtype=target.fp8, device=x_TR.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x_TR.device)
    launch(
        quantize_kernel,
        (tokens,),
        x_TR, codes, scale, x_TR.stride(0), width,
        TOP=target.fp8_top, BLOCK_R=triton.next_power_of_2(width), options=row_options(width),
    )  # fmt: skip
    return codes, scale


def row_options(width: int) -> dict[str, int]:
    """Warps for a program that holds a row of `width` numbers: about 16 of them a thread."""
    return {"num_warps": min(16, max(1, triton.next_power_of_2(width) // 1024))}
