"""Kernels that take a row at a time: norm, gate, rotation, store."""

from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import norm, rope, silu, store
from glm_portable.ops import KVCache, Step
from glm_portable.verify.metrics import faults
from tests.backends.cases import normal
from tests.kernels.inputs import BF16, codes, fp8, full
from tests.kernels.machine import Machine

CPU = torch.device("cpu")


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("tokens", "width"), [(9, 192), (1, 176), pytest.param(17, 5120, marks=full)]
)
def test_norm(
    machine: Machine, tokens: int, width: int, dtype: torch.dtype, with_residual: bool
) -> None:
    x, w = normal(tokens, width, outliers=True), (1 + normal(width, seed=1) / 8).to(BF16)
    x[0] *= 2.0**-12  # eps weighs there
    r = normal(tokens, width, seed=2) if with_residual else None

    def inputs(kind: torch.dtype) -> tuple[Tensor, Tensor, float, Tensor | None]:
        return x.to(kind), w.to(kind), 1e-5, None if r is None else r.to(kind)

    on_machine = (machine.put(t) if isinstance(t, Tensor) else t for t in inputs(dtype))
    got, total = norm.rms_norm(machine.launch, *on_machine)  # type: ignore[arg-type]  # a generator
    plain, exact = (reference.rms_norm(*inputs(kind)) for kind in (dtype, torch.float64))
    assert torch.equal(total.cpu(), plain[1])
    assert faults(got.cpu(), plain[0], exact[0]) == []
    # One unit in the last place, where the mean was summed in another order.
    step = 2**-7 if dtype == BF16 else 2**-21
    assert torch.allclose(got.cpu().double(), plain[0].double(), rtol=step, atol=0)


def test_norm_reads_strided_rows_in_place(machine: Machine) -> None:
    wide = machine.put(normal(5, 512).to(BF16))
    w = machine.put((1 + normal(176, seed=1) / 8).to(BF16))
    x, r = wide[:, 16:192], wide[:, 200:376]
    got = norm.rms_norm(machine.launch, x, w, 1e-5, r)
    expected = norm.rms_norm(machine.launch, x.contiguous(), w, 1e-5, r.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [192, 176, silu.TILE + 40])
def test_gate(machine: Machine, width: int, dtype: torch.dtype) -> None:
    x = (normal(3, 2 * width) * 4).to(dtype)
    x[0, :6] = torch.tensor([-200.0, 200.0, 88.0, -88.0, -104.0, 0.0])  # exp over- and underflows
    got = silu.silu_mul(machine.launch, machine.put(x)).cpu()
    assert faults(got, reference.silu_mul(x), reference.silu_mul(x.double())) == []


def angles(tokens: int, rotary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin) of positions up to the longest context, each angle twice."""
    positions = torch.tensor([0, 1, 77, 4096, 131071], dtype=torch.float64)[:tokens, None]
    angle = positions * 1e6 ** (-torch.arange(0, rotary, 2) / rotary)
    angle = torch.cat([angle, angle], -1)
    return angle.cos().bfloat16().to(dtype), angle.sin().bfloat16().to(dtype)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("heads", "groups", "size", "rotary"),
    [
        (12, 1, 128, 64),
        (5, 3, 64, 64),
        pytest.param(24, 2, 128, 128, marks=full),
        pytest.param(12, 2, 64, 32, marks=full),
        pytest.param(8, 8, 32, 24, marks=full),
    ],
)
def test_rope_reads_views_into_one_row(
    machine: Machine, heads: int, groups: int, size: int, rotary: int, normed: bool
) -> None:
    qkv = normal(5, (heads + 2 * groups) * size)
    w, u = (1 + normal(size, seed=s) / 8 for s in (1, 2))

    def run(function: Any, dtype: torch.dtype, put: Any) -> list[Tensor]:
        widths = [heads * size, groups * size, groups * size]
        q, k, _ = put(qkv.to(BF16).to(dtype)).split(widths, -1)
        norms = [put(x.to(BF16).to(dtype)) for x in (w, u)] if normed else [None, None]
        cos, sin = (put(x) for x in angles(5, rotary, dtype))
        q, k = q.view(5, heads, size), k.view(5, groups, size)
        return list(function(q, k, cos, sin, *norms, 1e-5))

    got = run(lambda *a: rope.rope(machine.launch, *a), BF16, machine.put)
    plain, exact = (run(reference.rope, t, lambda x: x) for t in (BF16, torch.float64))
    for g, p, e in zip(got, plain, exact, strict=True):
        assert g.is_contiguous()
        assert faults(g.cpu(), p, e) == []
        if not normed:  # what is not turned is not touched
            assert torch.equal(g.cpu()[..., rotary:], p[..., rotary:])


def check_store(
    machine: Machine, k: Tensor, v: Tensor, kind: torch.dtype, scales: tuple[float, float]
) -> None:
    """Slots 19, 0, 6, ... get the reference's bits, and no other slot changes."""
    tokens, groups, size = k.shape
    pages = [torch.full((5, 4, groups, size), 7.0).to(kind) for _ in range(2)]
    order = [(19, 1, [4] * 5), (0, 1, [0]), (2, 1, [1])][:tokens]
    step = Step.build(order, 4, CPU)
    mine_k, mine_v = (machine.put(p.clone()) for p in pages)
    mine = KVCache(mine_k, mine_v, *scales)
    slots = machine.put(step.slots_T)
    store.store(machine.launch, machine.put(k), machine.put(v), mine, slots)
    truth = KVCache(pages[0], pages[1], *scales)
    reference.store(k, v, truth, step)
    for got, expected in ((mine.k_PSGC, truth.k_PSGC), (mine.v_PSGC, truth.v_PSGC)):
        assert torch.equal(codes(got), codes(expected))


@fp8
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_store_writes_its_slots_in_the_type_of_the_pages(machine: Machine, kind: str) -> None:
    qkv = normal(3, 4 * 32).to(BF16)
    qkv[0, 0] = 1e4  # beyond FP8
    k, v = (x.view(3, 2, 32) for x in torch.split(qkv, [64, 64], -1))
    if kind == "bf16":
        check_store(machine, k, v, BF16, (1.0, 1.0))
    else:
        check_store(machine, k, v, machine.target.fp8, (0.5, 3.0))


@fp8
@pytest.mark.parametrize("scale", [3.0, pytest.param(1.0, marks=full)])
def test_store_rounds_every_number_as_the_reference_does(machine: Machine, scale: float) -> None:
    """All finite numbers of bf16, as keys and as values."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16)
    for part in torch.split(every[every.isfinite()], 8 * 128):
        k = torch.zeros(8 * 128).to(BF16)
        k[: len(part)] = part
        k = k.view(1, 8, 128)
        check_store(machine, k, -k, machine.target.fp8, (scale, scale))


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
