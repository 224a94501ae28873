"""Kernels that take a row at a time: quantisation, norm, gate, rotation, store."""

from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import norm, quantize, rope, silu, store
from glm_portable.kernels.target import Target
from glm_portable.ops import KVCache
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
    codes, scale, total = norm.rms_norm_quantize(launch, target, x, w, 1e-5, residual)
    normed, expected_total = norm.rms_norm(launch, x, w, 1e-5, residual)
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


def test_gate_of_a_width_above_one_tile() -> None:
    x = (normal(2, 2 * (silu.TILE + 40)) * 4).to(BF16)
    exact = reference.silu_mul(x.double())
    assert torch.allclose(silu.silu_mul(launch, x).double(), exact, rtol=2**-8, atol=1e-30)


def test_rope_reads_views_into_one_row_and_writes_only_its_heads() -> None:
    qkv = normal(3, (12 + 2 + 2) * 64).to(BF16)
    q, k, _ = (x.view(3, -1, 64) for x in torch.split(qkv, [12 * 64, 2 * 64, 2 * 64], -1))
    angle = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) * 6
    cos, sin = (torch.cat([a, a], -1).to(BF16) for a in (angle.cos(), angle.sin()))
    got = rope.rope(launch, q, k, cos, sin)
    expected = reference.rope(q.float(), k.float(), cos.float(), sin.float())
    for g, e in zip(got, expected, strict=True):
        assert g.is_contiguous() and torch.allclose(g.float(), e, rtol=2**-8, atol=1e-6)
        assert torch.equal(g[..., 32:].float(), e[..., 32:])


@pytest.mark.parametrize("kind", [BF16, FP8, torch.float8_e4m3fnuz], ids=str)
def test_store_writes_its_slots_in_the_type_of_the_pages(kind: torch.dtype) -> None:
    qkv = normal(3, 4 * 32).to(BF16)
    qkv[0, 0] = 1e4  # beyond FP8
    k, v = (x.view(3, 2, 32) for x in torch.split(qkv, [64, 64], -1))
    pages = [torch.full((5, 4, 2, 32), 7.0).to(kind) for _ in range(2)]
    slots = torch.tensor([19, 0, 6])
    scales = (1.0, 1.0) if kind == BF16 else (0.5, 3.0)
    store.store(launch, k, v, KVCache(pages[0], pages[1], *scales), slots)
    top = torch.finfo(kind).max
    for x, kept, scale in zip((k, v), pages, scales, strict=True):
        flat = kept.flatten(0, 1)
        expected = (x.float() / scale).clamp(-top, top).to(kind)
        assert torch.equal(flat[slots].float(), expected.float())
        others = [s for s in range(20) if s not in slots.tolist()]
        assert (flat[others].float() == 7).all()


def test_store_reaches_slots_beyond_32_bits() -> None:
    """Slot * width of the 355B model's cache exceeds 2^31 elements: the product must be 64-bit."""
    width, slot = 4096, 600_000  # 2.46e9 elements
    recorded: list[Any] = []

    def record(kernel: Any, grid: Any, *arguments: Any, **rest: Any) -> None:
        recorded.append(arguments)

    pages = torch.empty(slot // 16 + 1, 16, 8, 512, device="meta", dtype=BF16)
    k = torch.empty(1, 8, 512, device="meta", dtype=BF16)
    store.store(record, k, k, KVCache(pages, pages), torch.tensor([slot]))
    assert recorded[0][4].dtype == torch.int64 and slot * width > 2**31
