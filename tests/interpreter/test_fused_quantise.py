"""Rows that a norm or a gate has quantised already give the products the same bits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends._gpu import Coded, GpuOps
from glm_portable.backends.rocm import virtual
from glm_portable.kernels.launch import observed
from glm_portable.ops import Weight
from glm_portable.virtual import interpreter
from tests.backends.cases import choices, normal, quantised, weight
from tests.interpreter.kernel_inputs import BF16, FP8

W = (1 + normal(64, seed=1) / 8).to(BF16)


def backend(arch: str) -> tuple[GpuOps, Any]:
    launch, seen = observed(interpreter.launch)
    return virtual(arch, launch), seen


def fp8(ops: GpuOps, *shape: int) -> Weight:
    return ops.pack(quantised(*shape, dtype=BF16, kind=FP8, dynamic=True))


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_after_a_norm(arch: str) -> None:
    ops, seen = backend(arch)
    x, residual = normal(3, 64, outliers=True).to(BF16), normal(3, 64, seed=2).to(BF16)
    gate_up, down, wide, odd = (
        fp8(ops, *s) for s in ((4, 64, 64), (4, 64, 32), (48, 64), (40, 64))
    )
    weights, ids = torch.full((3, 2), 0.5), choices(3, "spread", 4, 2)

    def products(normed: Tensor) -> list[Tensor]:
        mixed = ops.experts(normed, gate_up, down, weights, ids)
        return [ops.linear(normed, wide), ops.linear(normed, odd), mixed]

    plain, total = ops.rms_norm(x, W, 1e-5, residual)
    expected = products(plain)
    assert seen["quantize"] == 3 and not isinstance(plain, Coded)
    coded, coded_total = ops.rms_norm(x, W, 1e-5, residual, gate_up)
    assert isinstance(coded, Coded) and torch.equal(coded, plain)
    assert torch.equal(coded_total, total) and not isinstance(coded_total, Coded)
    for got, right in zip(products(coded), expected, strict=True):
        assert torch.equal(got, right)
    assert seen["quantize"] == 3


def test_after_a_gate() -> None:
    ops, seen = backend("gfx942")
    x, down = normal(5, 128).to(BF16), fp8(ops, 48, 64)
    expected = ops.linear(ops.silu_mul(x), down)
    assert torch.equal(ops.linear(ops.silu_mul(x, down), down), expected)
    assert seen["quantize"] == 1 and seen["silu_mul"] == 2


def test_weights_that_take_no_codes_get_none() -> None:
    ops, _ = backend("gfx942")
    x, static = normal(2, 64).to(BF16), quantised(48, 64, dtype=BF16, kind=FP8)
    for w in (weight(48, 64, dtype=BF16), static):
        assert not isinstance(ops.rms_norm(x, W, 1e-5, None, ops.pack(w))[0], Coded)
        assert not isinstance(ops.silu_mul(x, ops.pack(w)), Coded)


def test_codes_end_with_the_tensor_they_are_of() -> None:
    ops, _ = backend("gfx942")
    coded, _ = ops.rms_norm(normal(4, 64).to(BF16), W, 1e-5, None, fp8(ops, 48, 64))
    assert isinstance(coded, Coded)
    for derived in (coded[:2], coded * 2, coded.view(8, 32), coded.contiguous().clone(), coded + 0):
        assert type(derived) is Tensor
