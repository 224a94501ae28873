"""What the kernel tests share: types, size classes, and weights in the chip's dialect of FP8."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends._gpu import to_dialect
from glm_portable.kernels.grouped_gemm import Matrices
from glm_portable.verify.cases.data import quantised
from tests.kernels.machine import Machine

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
full = pytest.mark.full
fp8 = pytest.mark.fp8


def matrices(
    machine: Machine, e: int, n: int, k: int, block: tuple[int, int] | None = None
) -> tuple[Matrices, Tensor]:
    """(FP8 weights in the chip's dialect, what they mean in float64 on the host)."""
    w = quantised(e, n, k, dtype=torch.float64, kind=FP8, block=block)
    assert w.scale is not None
    data, scale = to_dialect(w.data, w.scale, machine.target.fp8)
    return Matrices(machine.put(data), machine.put(scale), block), w.dequantize()


def codes(x: Tensor) -> Tensor:
    """The bits of numbers in FP8, on the host."""
    return x.view(torch.uint8).cpu()
