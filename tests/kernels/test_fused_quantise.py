"""Rows that a norm or a gate has quantised already give the products the same bits."""

from typing import Any

import torch
from torch import Tensor

from glm_portable.backends._gpu import Coded, GpuOps
from glm_portable.kernels.launch import observed
from glm_portable.ops import Weight
from glm_portable.verify.cases.data import choices, normal, on, quantised, weight
from tests.kernels.inputs import BF16, FP8, fp8
from tests.kernels.machine import Machine


def backend(machine: Machine) -> tuple[GpuOps, Any]:
    launch, seen = observed(machine.launch)
    return GpuOps(machine.ops.name, machine.device, machine.target, launch), seen


def norm_weight(machine: Machine) -> Tensor:
    return machine.put((1 + normal(64, seed=1) / 8).to(BF16))


def packed(ops: GpuOps, *shape: int) -> Weight:
    return ops.pack(on(ops, quantised(*shape, dtype=BF16, kind=FP8, dynamic=True)))


@fp8
def test_after_a_norm(machine: Machine) -> None:
    ops, seen = backend(machine)
    x = machine.put(normal(3, 64, outliers=True).to(BF16))
    residual, w = machine.put(normal(3, 64, seed=2).to(BF16)), norm_weight(machine)
    gate_up, down, wide, odd = (
        packed(ops, *s) for s in ((4, 64, 64), (4, 64, 32), (48, 64), (40, 64))
    )
    weights, ids = machine.put(torch.full((3, 2), 0.5)), machine.put(choices(3, "spread", 4, 2))

    def products(normed: Tensor) -> list[Tensor]:
        mixed = ops.experts(normed, gate_up, down, weights, ids)
        return [ops.linear(normed, wide), ops.linear(normed, odd), mixed]

    plain, total = ops.rms_norm(x, w, 1e-5, residual)
    expected = products(plain)
    assert seen["quantize"] == 3 and not isinstance(plain, Coded)
    coded, coded_total = ops.rms_norm(x, w, 1e-5, residual, gate_up)
    assert isinstance(coded, Coded) and torch.equal(coded, plain)
    assert torch.equal(coded_total, total) and not isinstance(coded_total, Coded)
    for got, right in zip(products(coded), expected, strict=True):
        assert torch.equal(got, right)
    assert seen["quantize"] == 3


def test_after_a_gate(machine: Machine) -> None:
    ops, seen = backend(machine)
    x, down = machine.put(normal(5, 128).to(BF16)), packed(ops, 48, 64)
    expected = ops.linear(ops.silu_mul(x), down)
    assert torch.equal(ops.linear(ops.silu_mul(x, down), down), expected)
    assert seen["quantize"] == 1 and seen["silu_mul"] == 2


def test_weights_that_take_no_codes_get_none(machine: Machine) -> None:
    ops, _ = backend(machine)
    x, static = machine.put(normal(2, 64).to(BF16)), quantised(48, 64, dtype=BF16, kind=FP8)
    for w in (weight(48, 64, dtype=BF16), static):
        feeds = ops.pack(on(ops, w))
        assert not isinstance(ops.rms_norm(x, norm_weight(machine), 1e-5, None, feeds)[0], Coded)
        assert not isinstance(ops.silu_mul(x, feeds), Coded)


def test_codes_end_with_the_tensor_they_are_of(machine: Machine) -> None:
    ops, _ = backend(machine)
    x, w = machine.put(normal(4, 64).to(BF16)), norm_weight(machine)
    coded, _ = ops.rms_norm(x, w, 1e-5, None, packed(ops, 48, 64))
    assert isinstance(coded, Coded)
    for derived in (coded[:2], coded * 2, coded.view(8, 32), coded.contiguous().clone(), coded + 0):
        assert type(derived) is Tensor
