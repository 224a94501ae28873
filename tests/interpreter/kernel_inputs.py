"""What the kernel tests share: targets, inputs on bf16's grid, and both dialects of FP8."""

import torch
from torch import Tensor

from glm_portable.backends._gpu import to_dialect
from glm_portable.kernels.grouped_gemm import Matrices
from glm_portable.kernels.target import Target
from tests.backends.cases import quantised

TARGETS = [Target("gfx942"), Target("gfx950")]
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def matrices(
    target: Target, e: int, n: int, k: int, block: tuple[int, int] | None = None
) -> tuple[Matrices, Tensor]:
    """(FP8 weights in the chip's dialect, what they mean in float64)."""
    w = quantised(e, n, k, dtype=torch.float64, kind=FP8, block=block)
    assert w.scale is not None
    data, scale = to_dialect(w.data, w.scale, target.fp8)
    return Matrices(data, scale, block), w.dequantize()
