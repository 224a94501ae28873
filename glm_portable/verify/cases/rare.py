"""What the fault catalogue asked for: each case is one without which a fault was not noticed."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from glm_portable.verify.call import Call
from glm_portable.verify.cases.attention import Heads, attend
from glm_portable.verify.cases.case import Case
from glm_portable.verify.cases.data import FNUZ, FP8, INT8, Source
from glm_portable.verify.cases.experts import mixture
from glm_portable.verify.cases.linear import plain
from glm_portable.verify.cases.norm import gate, norm
from glm_portable.verify.cases.rope import rope

Make = Callable[[Source], Call]
TINY = Heads(2, 1, 16)
LATE = 2051
"""Tokens: more than 2048, after which paths change."""


def with_change(make: Make, change: Callable[[Mapping[str, Tensor]], None]) -> Make:
    def changed(source: Source) -> Call:
        call = make(source)
        change(call.tensors)
        return call

    return changed


def float32_numbers(source: Source) -> Call:
    """Numbers that BF16 does not hold: whoever multiplies float32 in BF16 errs by its rounding."""
    x, w = source.uniform(-1, 1, 5, 96), source.uniform(-1, 1, 64, 96) / 8
    return Call("linear", {"x": x, "w": w})


def subnormal_codes(source: Source) -> Call:
    """FP8 with an exponent of 0, the smallest numbers there are, and a scale to match."""
    bits = source.integers(0, 8, 64, 96) | source.integers(0, 2, 64, 96) * 0x80
    codes, scale = bits.to(torch.uint8).view(FP8), source.uniform(1, 8, 64, 1)
    return Call("linear", {"x": source.normal(5, 96), "w": codes, "w_scale": scale})


def zero_token(tensors: Mapping[str, Tensor]) -> None:
    """As padding has it."""
    tensors["x"][2] = 0


def nan_head(tensors: Mapping[str, Tensor]) -> None:
    tensors["q"][1, 0, 0] = tensors["k"][2, 1, 3] = torch.nan


def small_heads(tensors: Mapping[str, Tensor]) -> None:
    """So small that the epsilon of the norm decides."""
    for name in ("q", "k"):
        tensors[name].mul_(2.0**-9)


CASES = [
    Case("linear", "float32 numbers", float32_numbers),
    Case("linear", "fp8 of subnormals alone", subnormal_codes),
    Case("linear", "70000 columns", plain(2, 70000, 16)),
    Case("experts", "fp8, dynamic activations, a token of zeros",
         mixture(5, code=FP8, change=zero_token), True),
    Case("experts", "int8, dynamic activations, a token of zeros",
         mixture(5, code=INT8, change=zero_token), True),
    Case("rms_norm", "2051 tokens", norm(LATE, 48, True)),
    Case("silu_mul", "2051 tokens", gate(LATE, 24)),
    Case("rope_store", "2051 tokens", rope(8, False, ((0, LATE),), TINY, 64)),
    Case("rope_store", "a head is NaN", with_change(rope(32, True), nan_head)),
    Case("rope_store", "small heads", with_change(rope(32, True), small_heads)),
    *(Case("rope_store", f"values that round to nothing, {label} pages",
           rope(32, False, kind=kind, still=True, size=2.0**-11),
           twin=f"values that round to nothing, {other} pages")
      for kind, label, other in ((FP8, "e4m3fn", "e4m3fnuz"), (FNUZ, "e4m3fnuz", "e4m3fn"))),
    Case("attend", "2051 queries", attend([(0, LATE)], TINY, 64)),
    Case("attend", "decode of 130 sequences", attend([(i % 7, 1) for i in range(130)], TINY, 8)),
]  # fmt: skip
