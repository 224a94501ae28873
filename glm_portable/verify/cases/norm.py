"""RMS norm and the gate of an MLP: sizes, residuals, extremes."""

from collections.abc import Callable

import torch
from torch import Tensor

from glm_portable.verify.call import Call
from glm_portable.verify.cases.case import Case
from glm_portable.verify.cases.data import Source, powers_of_two

Make = Callable[[Source], Call]
Change = Callable[[Tensor], Tensor]


def norm(
    t: int, d: int, residual: bool = False, change: Change = lambda x: x, eps: float = 1e-5
) -> Make:
    def make(source: Source) -> Call:
        x = change(source.normal(t, d, outliers=True))
        w = (1 + source.normal(d) / 8).bfloat16().float()
        extra = {"residual": source.normal(t, d)} if residual else {}
        return Call("rms_norm", {"x": x, "w": w, **extra}, {"eps": eps})

    return make


def gate(t: int, f: int, change: Change = lambda x: x) -> Make:
    def make(source: Source) -> Call:
        return Call("silu_mul", {"x": change(source.normal(t, 2 * f) * 4).bfloat16().float()})

    return make


def every_size(x: Tensor) -> Tensor:
    """Rows from 2^-30, where epsilon rules, to 2^40; one row of zeros."""
    x = x * powers_of_two(torch.linspace(-30, 40, len(x)))
    x[len(x) // 2] = 0
    return x


def not_finite(x: Tensor) -> Tensor:
    x[1, 3], x[3, 0] = torch.nan, torch.inf
    return x


def extreme_gates(x: Tensor) -> Tensor:
    """Gates whose sigmoid is 0 or 1, zeros of both signs, NaN; products up to 2^60."""
    x[0, :6] = torch.tensor([200.0, -200.0, 0.0, -0.0, 1e4, -88.5])
    x[1, 0], x[2, -1], x[3, 1] = torch.nan, torch.nan, torch.inf
    x[4] *= 2.0**30
    return x


CASES = [
    Case("rms_norm", "without residual", norm(9, 192)),
    Case("rms_norm", "with residual", norm(9, 192, True)),
    Case("rms_norm", "small values", norm(9, 192, change=lambda x: x * 2.0**-10)),
    Case("rms_norm", "rows of every size", norm(17, 192, change=every_size)),
    Case("rms_norm", "NaN and infinity", norm(5, 192, change=not_finite)),
    Case("rms_norm", "one token, 5120 wide", norm(1, 5120, True)),
    Case("rms_norm", "17 tokens, 4096 wide", norm(17, 4096)),
    Case("rms_norm", "odd width", norm(3, 131)),
    Case("rms_norm", "GLM-4.5, 2049 tokens", norm(2049, 5120, True), full=True),
    Case("silu_mul", "352 columns", gate(9, 176)),
    Case("silu_mul", "one token, 1368 columns", gate(1, 684)),
    Case("silu_mul", "17 tokens, 192 columns", gate(17, 96)),
    Case("silu_mul", "odd width", gate(3, 37)),
    Case("silu_mul", "extremes", gate(9, 96, extreme_gates)),
    Case("silu_mul", "Air, 2049 tokens", gate(2049, 1408), full=True),
]
