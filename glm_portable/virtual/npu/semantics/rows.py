"""Operators on rows: npu_rms_norm, npu_add_rms_norm, npu_swiglu."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import require, values_needed

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def rms_norm(chip: Chip, x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(x / sqrt(mean(x^2) + epsilon) * gamma, 1 / that root in float32)."""
    _check_norm("npu_rms_norm", x, gamma)
    values_needed(x)
    return _norm(x, gamma, epsilon)


def add_rms_norm(
    chip: Chip, x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """(the norm of x1 + x2, 1 / its root, x1 + x2)."""
    op = "npu_add_rms_norm"
    _check_norm(op, x1, gamma)
    require(x2.dtype == x1.dtype, op, "x2's dtype", x2.dtype, f"x1's is {x1.dtype}")
    require(x2.shape == x1.shape, op, "x2's shape", tuple(x2.shape), f"x1's is {tuple(x1.shape)}")
    values_needed(x1)
    total = (x1.float() + x2.float()).to(x1.dtype)
    return *_norm(total, gamma, epsilon), total


def swiglu(chip: Chip, x: Tensor, dim: int = -1) -> Tensor:
    """silu(first half) * second half along `dim`."""
    op = "npu_swiglu"
    require(x.dtype in FLOATS, op, "input's dtype", x.dtype, f"it must be one of {FLOATS}")
    require(x.shape[dim] % 2 == 0, op, f"input's dimension {dim}", x.shape[dim], "it must be even")
    values_needed(x)
    gate, up = x.float().chunk(2, dim)
    return (F.silu(gate) * up).to(x.dtype)


def _check_norm(op: str, x: Tensor, gamma: Tensor) -> None:
    require(x.dtype in FLOATS, op, "x's dtype", x.dtype, f"it must be one of {FLOATS}")
    allowed = (x.dtype, torch.float32)
    require(
        gamma.dtype in allowed, op, "gamma's dtype", gamma.dtype, f"it must be one of {allowed}"
    )
    tail = tuple(x.shape[x.dim() - gamma.dim() :])
    require(
        tuple(gamma.shape) == tail, op, "gamma's shape", tuple(gamma.shape), f"x ends in {tail}"
    )


def _norm(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    over = tuple(range(x.dim() - gamma.dim(), x.dim()))
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(over, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(x.dtype), rstd
