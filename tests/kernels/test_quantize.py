"""Rounding to FP8 with a scale a token, alone and fused: codes and scales are the reference's."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import norm, quantize, silu
from glm_portable.verify.cases.data import normal
from tests.kernels.inputs import BF16, FP8, codes, fp8, full
from tests.kernels.machine import Machine

TINY = torch.finfo(torch.float32).tiny
WIDTHS = [(1, 192), (17, 176), (3, 704), pytest.param(5, 5120, marks=full)]


def expected(machine: Machine, x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scale) by plain PyTorch on the host, in the chip's dialect."""
    top = machine.target.fp8_top
    scale = (x.float().abs().amax(-1, keepdim=True) / top).clamp(min=TINY)
    return (x.float() / scale).clamp(-top, top).to(machine.target.fp8), scale


def check(machine: Machine, x: Tensor, got: tuple[Tensor, Tensor]) -> None:
    """Equal bits. x: what was rounded."""
    true_codes, true_scale = expected(machine, x.cpu())
    assert got[0].dtype == machine.target.fp8 and got[1].shape == (len(x), 1)
    assert torch.equal(got[1].cpu(), true_scale)
    assert torch.equal(codes(got[0]), codes(true_codes))


def run(machine: Machine, x: Tensor) -> tuple[Tensor, Tensor]:
    return quantize.quantize(machine.launch, machine.target, machine.put(x))


@fp8
@pytest.mark.parametrize(("tokens", "width"), WIDTHS)
@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
def test_codes_and_scales(machine: Machine, tokens: int, width: int, dtype: torch.dtype) -> None:
    x = normal(tokens, width, outliers=True)
    x[0] *= 2.0**-60
    x[-1, :8] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 448.0, -448.0, 3e38, -1.0])
    check(machine, x.to(dtype), run(machine, x.to(dtype)))


@fp8
def test_what_the_reference_calls_dynamic_activations(machine: Machine) -> None:
    """Codes times scales, rounded, are the activations that the reference multiplies."""
    x = normal(9, 192, outliers=True).to(BF16)
    found, scale = run(machine, x)
    rounded = (found.cpu().float() * scale.cpu()).to(BF16)
    assert torch.equal(rounded, reference.quantize_per_token(x, FP8))


@fp8
@pytest.mark.parametrize("exponent", [0, pytest.param(-100, marks=full)])
def test_every_code_every_tie_and_its_neighbours(machine: Machine, exponent: int) -> None:
    """All of bf16 between a row's largest number and 2^-20 of it, under four largest numbers."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16)
    within = every[(every.abs() <= 1) & (every.abs() >= 2.0**-20)].float()
    tops = torch.tensor([1.0, 448 / 256, 1.3125, 1.9921875])
    x = (torch.cat([within.expand(4, -1), tops[:, None]], 1) * 2.0**exponent).to(BF16)
    check(machine, x, run(machine, x))


@fp8
def test_rows_that_are_hard_to_scale(machine: Machine) -> None:
    """Zeros; a largest number whose scale is subnormal; subnormals beside a normal; infinity."""
    x = torch.zeros(6, 32)
    x[1, 3] = -0.0
    x[2, :4] = torch.tensor([1e-37, -1e-38, 1e-40, 2.0**-149])
    x[3, :4] = torch.tensor([448 * TINY, TINY, TINY / 2, -TINY / 4])
    x[4, :4] = torch.tensor([1.0, TINY, -TINY / 2, 2.0**-149])
    x[5, :2] = torch.tensor([3.38e38, -3.38e38])
    check(machine, x, run(machine, x))
    check(machine, x.to(BF16), run(machine, x.to(BF16)))


@fp8
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_row_that_overflowed_does_not_turn_into_numbers(machine: Machine, value: float) -> None:
    x = normal(3, 64).to(BF16)
    x[1, 7] = value
    found, scale = run(machine, x)
    assert (found[1].cpu().float() * scale[1].cpu()).isnan().all()
    check(machine, x[::2], (found[::2], scale[::2]))


@fp8
def test_a_strided_row_is_read_in_place(machine: Machine) -> None:
    x = machine.put(normal(3, 64).to(BF16))[:, 16:48]
    check(machine, x, quantize.quantize(machine.launch, machine.target, x))


@fp8
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("width", [176, pytest.param(5120, marks=full)])
def test_norm_and_quantise_in_one(machine: Machine, with_residual: bool, width: int) -> None:
    x, w = (machine.put(t.to(BF16)) for t in (normal(5, width), 1 + normal(width, seed=1) / 8))
    residual = machine.put(normal(5, width, seed=2).to(BF16)) if with_residual else None
    both, codes, scale, total = norm.rms_norm_quantize(
        machine.launch, machine.target, x, w, 1e-5, residual
    )
    normed, expected_total = norm.rms_norm(machine.launch, x, w, 1e-5, residual)
    assert torch.equal(both, normed) and torch.equal(total, expected_total)
    check(machine, normed, (codes, scale))


@fp8
@pytest.mark.parametrize("width", [192, 176, 352, pytest.param(1408, marks=full)])
def test_gate_and_quantise_in_one(machine: Machine, width: int) -> None:
    x = machine.put((normal(5, 2 * width) * 4).to(BF16))
    got = silu.silu_mul_quantize(machine.launch, machine.target, x)
    gated = silu.silu_mul(machine.launch, x)
    check(machine, gated, got)
    both = silu.silu_mul_both(machine.launch, machine.target, x)
    for one, other in zip(both, (gated, *got), strict=True):
        assert torch.equal(one.float(), other.float())
