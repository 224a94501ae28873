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
from glm_portable.verify.metrics import faults
from glm_portable.virtual.interpreter import launch
from tests.backends.cases import normal
from tests.interpreter.kernel_inputs import BF16, FP8

FNUZ = torch.float8_e4m3fnuz
STEP = Step.build([(18, 2, [4, 0, 2, 1, 3]), (0, 1, [6])], 4, torch.device("cpu"))
SLOTS = [14, 15, 24]  # positions 18 and 19 lie on page 3, the other sequence begins page 6


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
        row = normal(3, sum(widths)).to(BF16)
        parts = torch.split(row, widths, -1)
        self.q, self.k, self.v = (x.view(3, -1, self.size) for x in parts)
        half = torch.rand(3, self.rotary // 2, generator=torch.Generator().manual_seed(0)) * 6
        angle = torch.cat([half, half], -1)
        self.cos, self.sin = angle.cos().to(BF16), angle.sin().to(BF16)
        self.norms = [(1 + normal(self.size, seed=s) / 8).to(BF16) for s in (1, 2)]

    def run(
        self, op: Callable[..., Tensor], cache: KVCache, where: Any, dtype: torch.dtype = BF16
    ) -> Tensor:
        rows = (x.to(dtype) for x in (self.q, self.k, self.v, self.cos, self.sin))
        norms = [w.to(dtype) for w in self.norms] if self.with_norm else [None, None]
        return op(*rows, cache, where, *norms, 1e-5)

    def pages(self, kind: torch.dtype, scales: tuple[float, float] = (1.0, 1.0)) -> KVCache:
        """Sevens in every slot: what a store leaves alone can be told."""
        k, v = (torch.full((7, 4, self.groups, self.size), 7.0).to(kind) for _ in range(2))
        return KVCache(k, v, *scales)


def fused(*arguments: Any) -> Tensor:
    return rope_store(launch, *arguments)


def written(pages: Tensor) -> Tensor:
    return pages.flatten(0, 1).float()[SLOTS]


def check_other_slots(cache: KVCache) -> None:
    others = [slot for slot in range(28) if slot not in SLOTS]
    for pages in (cache.k_PSGC, cache.v_PSGC):
        assert (pages.flatten(0, 1)[others].float() == 7).all()


@pytest.mark.parametrize("with_norm", [True, False], ids=["normed", "plain"])
@pytest.mark.parametrize(
    ("heads", "groups", "size", "rotary"),
    [(12, 1, 128, 64), (12, 2, 64, 32), (4, 4, 32, 32), (3, 1, 24, 8), (1, 1, 16, 8),
     (20, 10, 16, 8)],
)  # fmt: skip
def test_bf16_pages(heads: int, groups: int, size: int, rotary: int, with_norm: bool) -> None:
    inputs = Inputs(heads, groups, size, rotary, with_norm)
    results = []
    for op, where, dtype in (
        (fused, STEP.slots_T, BF16),
        (reference.rope_store, STEP, BF16),
        (reference.rope_store, STEP, torch.float64),
    ):
        cache = inputs.pages(dtype)
        q = inputs.run(op, cache, where, dtype)
        check_other_slots(cache)
        results.append((q, written(cache.k_PSGC), written(cache.v_PSGC)))
    for got, plain, exact in zip(*results, strict=True):
        assert got.is_contiguous() and faults(got, plain, exact) == []
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("kind", [FP8, FNUZ], ids=str)
def test_fp8_pages_hold_the_rounded_keys_over_their_scale(
    kind: torch.dtype, scales: tuple[float, float]
) -> None:
    """To the bit: what BF16 pages would hold, divided, rounded once, and limited to the largest."""
    inputs = Inputs()
    inputs.k[0, 0, 40:44] = torch.tensor([1e4, -1e4, 3.0, 0.0]).to(BF16)
    inputs.v[2, 1, :3] = torch.tensor([2e3, -2e3, -0.0]).to(BF16)
    plain, coded = inputs.pages(BF16), inputs.pages(kind, scales)
    q = inputs.run(fused, plain, STEP.slots_T)
    assert torch.equal(inputs.run(fused, coded, STEP.slots_T), q)
    check_other_slots(coded)
    top = torch.finfo(kind).max
    for kept, wide, scale in (
        (coded.k_PSGC, plain.k_PSGC, scales[0]),
        (coded.v_PSGC, plain.v_PSGC, scales[1]),
    ):
        expected = (written(wide) / scale).clamp(-top, top).to(kind).float()
        assert torch.equal(written(kept), expected)
    assert written(coded.v_PSGC).abs().max() == top


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
