"""RMS norm (Zhang and Sennrich 2019) of x + residual, on request quantised for the next product.

normed = (s / sqrt(mean(s^2) + eps), rounded to the model's type) * w, with s = x + residual
rounded to the model's type; the mean in float32. This is transformers' order of rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch
from glm_portable.kernels.quantize import quantized, row_options
from glm_portable.kernels.target import Target


@triton.jit
def rms_norm_kernel(
    x_ptr, residual_ptr, w_ptr, out_ptr, sum_ptr, codes_ptr, scale_ptr,
    x_stride, residual_stride, D, eps,
    HAS_RESIDUAL: tl.constexpr, TOP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row a program. With TOP above 0 it writes the FP8 codes up to TOP as well."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    x = tl.load(x_ptr + row * x_stride + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + offs, mask=mask, other=0.0)
        total = (x + residual.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * D + offs, total, mask=mask)
        x = total.to(tl.float32)
    size = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
    w = tl.load(w_ptr + offs, mask=mask, other=0.0)
    unit = (x * size).to(w.dtype).to(tl.float32)
    normed = (unit * w.to(tl.float32)).to(w.dtype)
    tl.store(out_ptr + row * D + offs, normed, mask=mask)
    if TOP > 0:
        codes, scale = quantized(normed.to(tl.float32), TOP)
        tl.store(codes_ptr + row * D + offs, codes.to(codes_ptr.dtype.element_ty), mask=mask)
        tl.store(scale_ptr + row, scale)


def rms_norm(
    launch: Launch, x_TD: Tensor, w_D: Tensor, eps: float, residual_TD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(the RMS norm of x + residual, x + residual), both (T, D) in x's type."""
    out = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    return out, _launch(launch, x_TD, w_D, eps, residual_TD, out, out, out, 0.0)


def rms_norm_quantize(
    launch: Launch,
    target: Target,
    x_TD: Tensor,
    w_D: Tensor,
    eps: float,
    residual_TD: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(normed, its codes (T, D) in the chip's FP8, their scale (T, 1), x + residual).

    To the bit what `rms_norm` and then `quantize` give, without reading the normed rows again.
    """
    out = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    codes = torch.empty(x_TD.shape, dtype=target.fp8, device=x_TD.device)
    scale = torch.empty(len(x_TD), 1, dtype=torch.float32, device=x_TD.device)
    total = _launch(launch, x_TD, w_D, eps, residual_TD, out, codes, scale, target.fp8_top)
    return out, codes, scale, total


def _launch(
    launch: Launch,
    x_TD: Tensor,
    w_D: Tensor,
    eps: float,
    residual_TD: Tensor | None,
    out: Tensor,
    codes: Tensor,
    scale: Tensor,
    top: float,
) -> Tensor:
    """Fill `out` and, with a top, codes and scale; the sum returned is x without a residual."""
    assert x_TD.stride(-1) == 1 and w_D.is_contiguous(), f"{x_TD.stride()=} {w_D.stride()=}"
    tokens, width = x_TD.shape
    total, residual = x_TD, x_TD
    if residual_TD is not None:
        assert residual_TD.stride(-1) == 1, f"{residual_TD.stride()=}"
        residual = residual_TD
        total = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    launch(
        rms_norm_kernel,
        (tokens,),
        x_TD, residual, w_D, out, total, codes, scale,
        x_TD.stride(0), residual.stride(0), width, eps,
        HAS_RESIDUAL=residual_TD is not None, TOP=top, BLOCK_D=triton.next_power_of_2(width),
        options=row_options(width),
    )  # fmt: skip
    return total
