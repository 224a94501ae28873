"""Kernels that take a row at a time: quantisation, norm and gate."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import norm, quantize, silu
from glm_portable.kernels.target import Target
from glm_portable.virtual.interpreter import launch
from tests.backends.cases import normal
from tests.interpreter.kernel_inputs import BF16, FP8, TARGETS


def rounded(codes: Tensor, scale: Tensor) -> Tensor:
    return (codes.float() * scale).to(BF16)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(1, 192), (17, 176), (3, 704)])
def test_quantise_rounds_as_the_reference_does(target: Target, tokens: int, width: int) -> None:
    x = normal(tokens, width, outliers=True).to(BF16)
    x[0] *= 2.0**-60
    x[-1, :8] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 448.0, -448.0, 3e38, -1.0])
    codes, scale = quantize.quantize(launch, target, x)
    assert codes.dtype == target.fp8 and scale.shape == (tokens, 1)
    assert torch.equal(rounded(codes, scale), reference.quantize_per_token(x, FP8))


def test_a_row_of_zeros_stays_zero_and_a_strided_row_is_read_in_place() -> None:
    wide = normal(3, 64).to(BF16)
    wide[1] = 0
    codes, scale = quantize.quantize(launch, TARGETS[1], wide[:, 16:48])
    assert torch.equal(rounded(codes, scale), reference.quantize_per_token(wide[:, 16:48], FP8))
    assert codes[1].float().tolist() == [0.0] * 32


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("with_residual", [True, False])
def test_norm_and_quantise_in_one(target: Target, with_residual: bool) -> None:
    x, w = normal(5, 176).to(BF16), (1 + normal(176, seed=1) / 8).to(BF16)
    residual = normal(5, 176, seed=2).to(BF16) if with_residual else None
    both, codes, scale, total = norm.rms_norm_quantize(launch, target, x, w, 1e-5, residual)
    normed, expected_total = norm.rms_norm(launch, x, w, 1e-5, residual)
    assert torch.equal(both, normed)
    assert torch.equal(total, expected_total)
    assert torch.equal(rounded(codes, scale), reference.quantize_per_token(normed, FP8))


def test_norm_rounds_where_the_model_does() -> None:
    x, w = normal(9, 192, outliers=True).to(BF16), (1 + normal(192, seed=1) / 8).to(BF16)
    residual = normal(9, 192, seed=2).to(BF16)
    got, expected = (
        f(x, w, 1e-5, residual) for f in (lambda *a: norm.rms_norm(launch, *a), reference.rms_norm)
    )
    assert torch.equal(got[1], expected[1])
    # One unit in the last place, where the mean was summed in another order.
    assert torch.allclose(got[0].float(), expected[0].float(), rtol=2**-7, atol=0)
    assert (got[0] != expected[0]).float().mean() < 0.01


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gate_and_quantise_in_one(target: Target) -> None:
    x = (normal(5, 2 * 176) * 4).to(BF16)
    codes, scale = silu.silu_mul_quantize(launch, target, x)
    gated = silu.silu_mul(launch, x)
    assert torch.equal(rounded(codes, scale), reference.quantize_per_token(gated, FP8))
    both = silu.silu_mul_both(launch, target, x)
    for got, expected in zip(both, (gated, codes, scale), strict=True):
        assert torch.equal(got.float(), expected.float())


def test_gate_of_a_width_above_one_tile() -> None:
    x = (normal(2, 2 * (silu.TILE + 40)) * 4).to(BF16)
    exact = reference.silu_mul(x.double())
    assert torch.allclose(silu.silu_mul(launch, x).double(), exact, rtol=2**-8, atol=1e-30)
