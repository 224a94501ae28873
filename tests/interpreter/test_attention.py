"""Paged attention against float64: lengths around every boundary, splits, scales, stale pages."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import attention
from glm_portable.kernels.attention import attend
from glm_portable.ops import KVCache, Step
from glm_portable.verify.metrics import faults
from glm_portable.virtual.interpreter import launch
from tests.backends.cases import normal
from tests.interpreter.kernel_inputs import BF16, TARGETS

CPU = torch.device("cpu")
Sequences = list[tuple[int, int]]


def layout(sequences: Sequences, slots: int) -> tuple[Step, int]:
    """A step over pages dealt out in a shuffled order, and how many pages there are."""
    counts = [-(-(cached + new) // slots) for cached, new in sequences]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    rows = [[order.pop() for _ in range(n)] for n in counts]
    listed = [(c, n, pages) for (c, n), pages in zip(sequences, rows, strict=True)]
    return Step.build(listed, slots, CPU), sum(counts) + 3


def stale(step: Step, pages: Tensor, slots: int) -> Tensor:
    """NaN in every slot that holds no token of a sequence, as another request may leave it."""
    used = torch.zeros(len(pages) * slots, dtype=torch.bool)
    for row, length in zip(step.block_table_BP.tolist(), step.kv_lengths, strict=True):
        for position in range(length):
            used[row[position // slots] * slots + position % slots] = True
    flat = pages.clone().flatten(0, 1)
    flat[~used] = torch.nan
    return flat.view_as(pages)


def check(
    sequences: Sequences,
    heads: int = 12,
    groups: int = 1,
    size: int = 32,
    slots: int = 16,
    dtype: torch.dtype = BF16,
    pages: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    arch: int = 0,
) -> Tensor:
    """Compare with float64 under the rule of `verify.metrics`; returns the result."""
    step, count = layout(sequences, slots)
    k, v = (normal(count, slots, groups, size, seed=s).to(dtype) for s in (1, 2))
    if pages is not None:
        k, v = k.to(pages), v.to(pages)
    q = normal(step.query_ends[-1], heads, size, seed=3).to(dtype)
    exact = reference.attend(q.double(), KVCache(k.double(), v.double(), *scales), step, size**-0.5)
    plain = reference.attend(q, KVCache(k, v, *scales), step, size**-0.5)
    kept_k, kept_v = (stale(step, p.float(), slots).to(p.dtype) for p in (k, v))
    cache = KVCache(kept_k, kept_v, *scales)
    got = attend(launch, TARGETS[arch], q, cache, step, size**-0.5)
    assert faults(got, plain, exact) == []
    return got


def test_decode_of_any_length() -> None:
    check([(n - 1, 1) for n in (1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 513)], size=16)


def test_decode_of_4100_keys_with_the_shape_of_the_real_models() -> None:
    check([(4099, 1), (700, 1)], heads=24, groups=2, size=128)


@pytest.mark.parametrize("queries", range(2, 9))
def test_verification_of_drafts(queries: int) -> None:
    check([(250, queries), (3, 2), (254, queries), (0, queries)])


def test_a_split_that_only_the_last_queries_see() -> None:
    """256 keys a split: of five queries at 253 to 257, the first three see none of the second."""
    check([(253, 5)])


def test_prefill_and_chunks() -> None:
    check([(0, 9), (64, 33), (10, 100)], size=16)


def test_everything_in_one_step() -> None:
    check([(0, 70), (300, 1), (5, 3), (40, 73), (0, 1), (600, 8)], heads=8, groups=2)


@pytest.mark.parametrize("slots", [1, 16, 64, 128])
def test_sizes_of_pages(slots: int) -> None:
    """From 64 slots on, a block of keys lies in one page and is addressed otherwise."""
    check([(129, 1), (70, 20), (300, 2)], slots=slots)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (12, 1), (40, 2), (24, 1)])
def test_sharing_of_heads(heads: int, groups: int) -> None:
    check([(33, 1), (20, 12)], heads=heads, groups=groups)


def test_float32() -> None:
    check([(300, 1), (20, 12)], dtype=torch.float32)


@pytest.mark.parametrize("arch", [0, 1])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 3.0)])
def test_fp8_pages_with_scales(arch: int, scales: tuple[float, float]) -> None:
    sequences = [(300, 1), (20, 12), (40, 3)]
    check(sequences, pages=TARGETS[arch].fp8, scales=scales, arch=arch)


def test_the_bits_of_a_sequence_do_not_depend_on_its_neighbours() -> None:
    sequences = [(700, 1), (20, 1), (5000, 1)]
    step, count = layout(sequences, 16)
    k, v = (normal(count, 16, 1, 16, seed=s).to(BF16) for s in (1, 2))
    cache = KVCache(k, v)
    q = normal(3, 12, 16).to(BF16)
    together = attend(launch, TARGETS[0], q, cache, step, 0.25)
    pages = step.block_table_BP[0, :44].tolist()
    alone = Step.build([(700, 1, pages)], 16, CPU)
    assert torch.equal(together[:1], attend(launch, TARGETS[0], q[:1], cache, alone, 0.25))


def test_queries_may_be_a_view_into_a_wider_row() -> None:
    step, count = layout([(20, 3)], 16)
    k, v = (normal(count, 16, 1, 32, seed=s).to(BF16) for s in (1, 2))
    cache = KVCache(k, v)
    wide = normal(3, 14 * 32).to(BF16)
    q = wide[:, : 12 * 32].view(3, 12, 32)
    got = attend(launch, TARGETS[0], q, cache, step, 0.2)
    assert torch.equal(got, attend(launch, TARGETS[0], q.contiguous(), cache, step, 0.2))


@pytest.mark.parametrize("length", [1, 256, 257, 8192, 8193, 131072, 202752])
def test_splits_cover_a_sequence_and_are_bounded(length: int) -> None:
    keys = attention.split_keys(length)
    splits = -(-length // keys)
    assert keys % attention.LEAST_SPLIT == 0 and splits <= attention.MOST_SPLITS
    assert (splits - 1) * keys < length <= splits * keys
