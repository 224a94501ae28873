"""SwiGLU's gate (Shazeer 2020): silu(gate) * up, on request quantised for the next product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch
from glm_portable.kernels.quantize import quantized, row_options
from glm_portable.kernels.target import Target

TILE = 2048
"""Columns a program takes when it need not see a whole row."""


@triton.jit
def silu_mul_kernel(
    x_ptr, out_ptr, scale_ptr, x_stride, F, TOP: tl.constexpr, BLOCK_F: tl.constexpr
):
    """x is (T, 2F), the gate before the up half. With TOP above 0 a block must hold a row."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = offs < F
    x_ptr += row * x_stride
    gate = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + offs, mask=mask, other=0.0)
    hidden = (gate * tl.sigmoid(gate) * up.to(tl.float32)).to(up.dtype)
    if TOP > 0:
        hidden, scale = quantized(hidden.to(tl.float32), TOP)
        tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * F + offs, hidden.to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(launch: Launch, x_T2F: Tensor) -> Tensor:
    """silu(first half) * second half, (T, F) in x's type, rounded once."""
    tokens, width = x_T2F.shape[0], x_T2F.shape[1] // 2
    out = torch.empty(tokens, width, dtype=x_T2F.dtype, device=x_T2F.device)
    _launch(launch, x_T2F, out, out, 0.0, min(TILE, triton.next_power_of_2(width)))
    return out


def silu_mul_quantize(launch: Launch, target: Target, x_T2F: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (T, F) in the chip's FP8, scale (T, 1)): `silu_mul`, then `quantize`."""
    tokens, width = x_T2F.shape[0], x_T2F.shape[1] // 2
    codes = torch.empty(tokens, width, dtype=target.fp8, device=x_T2F.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x_T2F.device)
    _launch(launch, x_T2F, codes, scale, target.fp8_top, triton.next_power_of_2(width))
    return codes, scale


def _launch(
    launch: Launch, x_T2F: Tensor, out: Tensor, scale: Tensor, top: float, block: int
) -> None:
    assert x_T2F.stride(-1) == 1, f"{x_T2F.stride()=}"
    tokens, width = out.shape
    launch(
        silu_mul_kernel,
        (tokens, triton.cdiv(width, block)),
        x_T2F, out, scale, x_T2F.stride(0), width,
        TOP=top, BLOCK_F=block, options=row_options(block),
    )  # fmt: skip
