"""Rotation and store in one launch: against the reference's two steps, in every type of page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels.rope import rope_store
from glm_portable.ops import KVCache, Step
from glm_portable.verify.cases.data import normal
from glm_portable.verify.metrics import faults
from tests.kernels.inputs import BF16, codes, fp8, full
from tests.kernels.machine import Machine

STEP = Step.build([(18, 2, [4, 0, 2, 1, 3]), (0, 1, [6])], 4, torch.device("cpu"))
SLOTS = [14, 15, 24]  # positions 18 and 19 lie on page 3, the other sequence begins page 6
POSITIONS = torch.tensor([1, 4096, 131071], dtype=torch.float64)


@dataclass
class Inputs:
    """Three tokens; q, k and v are views into one row, as the model projects them."""

    heads: int = 12
    groups: int = 2
    size: int = 64
    rotary: int = 32
    with_norm: bool = True

    def __post_init__(self) -> None:
        widths = [n * self.size for n in (self.heads, self.groups, self.groups)]
        parts = torch.split(normal(3, sum(widths)).to(BF16), widths, -1)
        self.q, self.k, self.v = (x.view(3, -1, self.size) for x in parts)
        frequency = 1e6 ** (-torch.arange(0, self.rotary, 2) / self.rotary)
        angle = (POSITIONS[:, None] * frequency).repeat(1, 2)
        self.cos, self.sin = angle.cos().to(BF16), angle.sin().to(BF16)
        self.norms = [(1 + normal(self.size, seed=s) / 8).to(BF16) for s in (1, 2)]

    def expected(self, cache: KVCache, dtype: torch.dtype) -> Tensor:
        return self._run(reference.rope_store, cache, STEP, lambda x: x.to(dtype))

    def fused(self, machine: Machine, cache: KVCache) -> tuple[Tensor, KVCache]:
        """(queries, the cache afterwards), on the host."""
        pages = [machine.put(x) for x in (cache.k_PSGC, cache.v_PSGC)]
        mine = KVCache(pages[0], pages[1], cache.k_scale, cache.v_scale)

        def start(*arguments: Any) -> Tensor:
            return rope_store(machine.launch, *arguments)

        q = self._run(start, mine, machine.put(STEP.slots_T), machine.put)
        assert q.is_contiguous()
        return q.cpu(), KVCache(mine.k_PSGC.cpu(), mine.v_PSGC.cpu(), *_scales(cache))

    def _run(
        self, op: Callable[..., Tensor], cache: KVCache, where: Any, put: Callable[[Tensor], Tensor]
    ) -> Tensor:
        rows = (put(x) for x in (self.q, self.k, self.v, self.cos, self.sin))
        norms = [put(w) for w in self.norms] if self.with_norm else [None, None]
        return op(*rows, cache, where, *norms, 1e-5)

    def pages(self, kind: torch.dtype, scales: tuple[float, float] = (1.0, 1.0)) -> KVCache:
        """Sevens in every slot: what a store leaves alone can be told."""
        k, v = (torch.full((7, 4, self.groups, self.size), 7.0).to(kind) for _ in range(2))
        return KVCache(k, v, *scales)


def _scales(cache: KVCache) -> tuple[float, float]:
    return cache.k_scale, cache.v_scale


def written(pages: Tensor) -> Tensor:
    return pages.flatten(0, 1).float()[SLOTS]


def check_other_slots(cache: KVCache) -> None:
    others = [slot for slot in range(28) if slot not in SLOTS]
    for pages in (cache.k_PSGC, cache.v_PSGC):
        assert (pages.flatten(0, 1).float()[others] == 7).all()


@pytest.mark.parametrize("with_norm", [True, False], ids=["normed", "plain"])
@pytest.mark.parametrize(
    ("heads", "groups", "size", "rotary"),
    [
        (12, 1, 128, 64),
        (3, 1, 24, 8),
        pytest.param(12, 2, 64, 32, marks=full),
        pytest.param(24, 2, 128, 128, marks=full),
        pytest.param(4, 4, 32, 32, marks=full),
        pytest.param(1, 1, 16, 8, marks=full),
        pytest.param(20, 10, 16, 8, marks=full),
    ],
)
def test_bf16_pages(
    machine: Machine, heads: int, groups: int, size: int, rotary: int, with_norm: bool
) -> None:
    inputs = Inputs(heads, groups, size, rotary, with_norm)
    q, cache = inputs.fused(machine, inputs.pages(BF16))
    check_other_slots(cache)
    results = [(q, written(cache.k_PSGC), written(cache.v_PSGC))]
    for dtype in (BF16, torch.float64):
        truth = inputs.pages(dtype)
        q = inputs.expected(truth, dtype)
        results.append((q, written(truth.k_PSGC), written(truth.v_PSGC)))
    for got, plain, exact in zip(*results, strict=True):
        assert faults(got, plain, exact) == []
        if not with_norm and got is not results[0][2]:  # what is not turned is not touched
            assert torch.equal(got[..., rotary:], plain[..., rotary:])
    assert torch.equal(results[0][2], results[1][2])


@fp8
@pytest.mark.parametrize("scales", [(0.5, 3.0), pytest.param((1.0, 1.0), marks=full)])
def test_fp8_pages_hold_the_rounded_keys_over_their_scale(
    machine: Machine, scales: tuple[float, float]
) -> None:
    """To the bit: what BF16 pages would hold, divided, rounded once, and limited to the largest."""
    inputs, kind = Inputs(), machine.target.fp8
    inputs.k[0, 0, 40:44] = torch.tensor([1e4, -1e4, 3.0, 0.0]).to(BF16)
    inputs.v[2, 1, :3] = torch.tensor([2e3, -2e3, -0.0]).to(BF16)
    plain_q, plain = inputs.fused(machine, inputs.pages(BF16))
    q, coded = inputs.fused(machine, inputs.pages(kind, scales))
    assert torch.equal(q, plain_q)
    check_other_slots(coded)
    top = torch.finfo(kind).max
    for kept, wide, scale in (
        (coded.k_PSGC, plain.k_PSGC, scales[0]),
        (coded.v_PSGC, plain.v_PSGC, scales[1]),
    ):
        expected = (written(wide) / scale).clamp(-top, top).to(kind).float()
        assert torch.equal(written(kept), expected)
    assert written(coded.v_PSGC).abs().max() == top


@fp8
@pytest.mark.parametrize("scale", [3.0, pytest.param(1.0, marks=full)])
def test_every_number_is_stored_as_the_reference_rounds_it(machine: Machine, scale: float) -> None:
    """All of BF16, infinities and NaN too, as keys that are not turned and as values."""
    numbers = torch.zeros(22 * 3 * 8 * 128, dtype=BF16)
    numbers[: 2**16] = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16)
    still = torch.zeros(3, 2, dtype=BF16)
    for k in numbers.view(-1, 3, 8, 128):
        q, v = k[:, :1], -k
        pages = [torch.zeros(7, 4, 8, 128).to(machine.target.fp8) for _ in range(4)]
        truth = KVCache(pages[0], pages[1], scale, scale)
        mine = KVCache(machine.put(pages[2]), machine.put(pages[3]), scale, scale)
        reference.rope_store(q, k, v, still + 1, still, truth, STEP)
        one, zero, slots = (machine.put(x) for x in (still + 1, still, STEP.slots_T))
        there = (machine.put(q), machine.put(k), machine.put(v))
        rope_store(machine.launch, *there, one, zero, mine, slots)
        for got, expected in ((mine.k_PSGC, truth.k_PSGC), (mine.v_PSGC, truth.v_PSGC)):
            nan = expected.float().isnan()
            assert torch.equal(got.cpu().float().isnan(), nan)
            assert torch.equal(codes(got)[~nan], codes(expected)[~nan])


def test_slots_beyond_32_bits_are_reached() -> None:
    """Slot * width of the 355B model's cache exceeds 2^31 elements: the product must be 64-bit."""
    width, slot = 8 * 512, 600_000  # 2.46e9 elements
    recorded: list[Any] = []

    def record(kernel: Any, grid: Any, *arguments: Any, **rest: Any) -> None:
        recorded.append(arguments)

    pages = torch.empty(slot // 16 + 1, 16, 8, 512, device="meta", dtype=BF16)
    q, k = (torch.empty(1, n, 512, device="meta", dtype=BF16) for n in (96, 8))
    angles = torch.empty(1, 256, device="meta", dtype=BF16)
    rope_store(record, q, k, k, angles, angles, KVCache(pages, pages), torch.tensor([slot]))
    assert recorded[0][6].dtype == torch.int64 and slot * width > 2**31
