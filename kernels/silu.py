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
    x_ptr, out_ptr, codes_ptr, scale_ptr, x_stride, F,
    PLAIN: tl.constexpr, TOP: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """x is (T, 2F), the gate before the up half. PLAIN: write the result in the model's type. With
    TOP above 0 write its FP8 codes up to TOP, for which a block must hold a row."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = offs < F
    x_ptr += row * x_stride
    gate = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + offs, mask=mask, other=0.0)
    hidden = (gate * tl.sigmoid(gate) * up.to(tl.float32)).to(up.dtype)
    if PLAIN:
        tl.store(out_ptr + row * F + offs, hidden, mask=mask)
    if TOP > 0:
        codes, scale = quantized(hidden.to(tl.float32), TOP)
        tl.store(codes_ptr + row * F + offs, codes.to(codes_ptr.dtype.element_ty), mask=mask)
        tl.store(scale_ptr + row, scale)


def silu_mul(launch: Launch, x_T2F: Tensor) -> Tensor:
    """silu(first half) * second half, (T, F) in x's type, rounded once."""
    out = _like(x_T2F, x_T2F.dtype)
    _launch(launch, x_T2F, out, None, out, 0.0, min(TILE, triton.next_power_of_2(out.shape[1])))
    return out


def silu_mul_quantize(launch: Launch, target: Target, x_T2F: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (T, F) in the chip's FP8, scale (T, 1)): `silu_mul`, then `quantize`."""
    codes, scale = _like(x_T2F, target.fp8), _scale(x_T2F)
    block = triton.next_power_of_2(codes.shape[1])
    _launch(launch, x_T2F, None, codes, scale, target.fp8_top, block)
    return codes, scale


def silu_mul_both(launch: Launch, target: Target, x_T2F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(`silu_mul`, its codes, their scale) in one pass."""
    out, codes, scale = _like(x_T2F, x_T2F.dtype), _like(x_T2F, target.fp8), _scale(x_T2F)
    block = triton.next_power_of_2(codes.shape[1])
    _launch(launch, x_T2F, out, codes, scale, target.fp8_top, block)
    return out, codes, scale


def _like(x_T2F: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x_T2F.shape[0], x_T2F.shape[1] // 2, dtype=dtype, device=x_T2F.device)


def _scale(x_T2F: Tensor) -> Tensor:
    return torch.empty(len(x_T2F), 1, dtype=torch.float32, device=x_T2F.device)


def _launch(
    launch: Launch,
    x_T2F: Tensor,
    out: Tensor | None,
    codes: Tensor | None,
    scale: Tensor,
    top: float,
    block: int,
) -> None:
    assert x_T2F.stride(-1) == 1, f"{x_T2F.stride()=}"
    tokens, width = x_T2F.shape[0], x_T2F.shape[1] // 2
    launch(
        silu_mul_kernel,
        (tokens, triton.cdiv(width, block)),
        x_T2F, scale if out is None else out, scale if codes is None else codes, scale,
        x_T2F.stride(0), width,
        PLAIN=out is not None, TOP=top, BLOCK_F=block, options=row_options(block),
    )  # fmt: skip
