"""Paged attention against float64: lengths around every boundary, splits, scales, stale pages."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import attention
from glm_portable.kernels.attention import attend
from glm_portable.ops import KVCache, Step
from glm_portable.verify.cases.data import normal
from glm_portable.verify.metrics import faults
from tests.kernels.inputs import BF16, fp8, full
from tests.kernels.machine import Machine

CPU = torch.device("cpu")
Sequences = list[tuple[int, int]]


def layout(sequences: Sequences, slots: int) -> tuple[list[tuple[int, int, list[int]]], int]:
    """Sequences over pages dealt out in a shuffled order, and how many pages there are."""
    counts = [-(-(cached + new) // slots) for cached, new in sequences]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    # Page 0 is nobody's: a kernel reads it in place of pages beyond a sequence's end.
    rows = [[1 + order.pop() for _ in range(n)] for n in counts]
    listed = [(c, n, pages) for (c, n), pages in zip(sequences, rows, strict=True)]
    return listed, sum(counts) + 4


def stale(step: Step, pages: Tensor, slots: int) -> Tensor:
    """NaN in every slot that holds no token of a sequence, as another request may leave it."""
    used = torch.zeros(len(pages) * slots, dtype=torch.bool)
    for row, length in zip(step.block_table_BP.tolist(), step.kv_lengths, strict=True):
        for position in range(length):
            used[row[position // slots] * slots + position % slots] = True
    flat = pages.float().flatten(0, 1)
    flat[~used] = torch.nan
    return flat.view_as(pages).to(pages.dtype)


def check(
    machine: Machine,
    sequences: Sequences,
    heads: int = 12,
    groups: int = 1,
    size: int = 32,
    slots: int = 16,
    dtype: torch.dtype = BF16,
    pages: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Compare with float64 under the rule of `verify.metrics`."""
    listed, count = layout(sequences, slots)
    step = Step.build(listed, slots, CPU)
    k, v = (normal(count, slots, groups, size, seed=s).to(dtype) for s in (1, 2))
    if pages is not None:
        k, v = k.to(pages), v.to(pages)
    q = normal(step.query_ends[-1], heads, size, seed=3).to(dtype)
    exact = reference.attend(q.double(), KVCache(k.double(), v.double(), *scales), step, size**-0.5)
    plain = reference.attend(q, KVCache(k, v, *scales), step, size**-0.5)
    kept_k, kept_v = (machine.put(stale(step, p, slots)) for p in (k, v))
    cache, there = KVCache(kept_k, kept_v, *scales), Step.build(listed, slots, machine.device)
    got = attend(machine.launch, machine.target, machine.put(q), cache, there, size**-0.5)
    assert faults(got.cpu(), plain, exact) == []


def ending_at(*lengths: int) -> Sequences:
    """One new token each."""
    return [(n - 1, 1) for n in lengths]


BOUNDARIES = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513]


def test_decode_of_any_length(machine: Machine) -> None:
    check(machine, ending_at(1, 16, 17, 63, 64, 65, 256, 257), size=16)


@full
def test_decode_at_every_boundary(machine: Machine) -> None:
    """Of a matrix instruction, a page, a block of keys and a split, with the models' head size."""
    check(machine, ending_at(*BOUNDARIES), size=128)


@full
@pytest.mark.parametrize("lengths", [(1023, 1024, 1025), (2047, 2048, 2049), (4095, 4096, 4100)])
def test_decode_of_long_sequences(machine: Machine, lengths: tuple[int, ...]) -> None:
    check(machine, ending_at(*lengths), size=128)


def test_decode_with_the_shape_of_the_real_models(machine: Machine) -> None:
    check(machine, [(699, 1), (4, 1)], heads=12, groups=1, size=128)


@full
def test_decode_of_4100_keys_in_two_groups(machine: Machine) -> None:
    check(machine, [(4099, 1), (700, 1)], heads=24, groups=2, size=128)


@full
def test_decode_where_a_split_holds_more_than_256_keys(machine: Machine) -> None:
    """From 8,193 keys on, 32 splits of 256 no longer hold a sequence."""
    check(machine, ending_at(8193, 300), size=16)


@pytest.mark.parametrize("queries", [4, *(pytest.param(n, marks=full) for n in (2, 3, 5, 6, 7, 8))])
def test_verification_of_drafts(machine: Machine, queries: int) -> None:
    check(machine, [(250, queries), (3, 2), (254, queries), (0, queries)])


def test_a_split_that_only_the_last_queries_see(machine: Machine) -> None:
    """256 keys a split: of five queries at 253 to 257, the first three see none of the second."""
    check(machine, [(253, 5)])


def test_prefill_and_chunks(machine: Machine) -> None:
    check(machine, [(0, 9), (64, 33), (10, 100)], size=16)


@full
@pytest.mark.parametrize("sequence", [(0, 257), (100, 130), (1000, 70), (4030, 70)])
def test_prefill_and_chunks_with_the_shape_of_the_real_models(
    machine: Machine, sequence: tuple[int, int]
) -> None:
    check(machine, [sequence], size=128)


def test_everything_in_one_step(machine: Machine) -> None:
    sequences = [(0, 70), (300, 1), (5, 3), (40, 73), (0, 1), (600, 8)]
    check(machine, sequences, heads=8, groups=2)


@pytest.mark.parametrize("slots", [64, *(pytest.param(s, marks=full) for s in (1, 8, 128))])
def test_sizes_of_pages(machine: Machine, slots: int) -> None:
    """From 64 slots on, a block of keys lies in one page and is addressed otherwise."""
    check(machine, [(129, 1), (70, 20), (300, 2)], slots=slots)


@pytest.mark.parametrize(
    ("heads", "groups"),
    [(4, 4), *(pytest.param(*hg, marks=full) for hg in ((4, 2), (12, 1), (40, 2), (24, 1)))],
)
def test_sharing_of_heads(machine: Machine, heads: int, groups: int) -> None:
    check(machine, [(33, 1), (20, 12)], heads=heads, groups=groups)


def test_float32(machine: Machine) -> None:
    check(machine, [(300, 1), (20, 12)], dtype=torch.float32)


@fp8
@pytest.mark.parametrize("scales", [(0.5, 3.0), pytest.param((1.0, 1.0), marks=full)])
@pytest.mark.parametrize(
    "sequences",
    [
        [(300, 1), (20, 12), (40, 3)],
        pytest.param([(0, 140)], marks=full),
        pytest.param([(254, 5), (4099, 1)], marks=full),
    ],
    ids=["mixed", "prefill", "long"],
)
@pytest.mark.parametrize("slots", [16, pytest.param(64, marks=full)])
def test_fp8_pages_with_scales(
    machine: Machine, sequences: Sequences, scales: tuple[float, float], slots: int
) -> None:
    check(machine, sequences, pages=machine.target.fp8, scales=scales, slots=slots)


def cache_on(machine: Machine, count: int, slots: int, size: int) -> KVCache:
    k, v = (machine.put(normal(count, slots, 1, size, seed=s).to(BF16)) for s in (1, 2))
    return KVCache(k, v)


def test_the_bits_of_a_sequence_do_not_depend_on_its_neighbours(machine: Machine) -> None:
    listed, count = layout([(700, 1), (20, 1), (1300, 1)], 16)
    cache, q = cache_on(machine, count, 16, 16), machine.put(normal(3, 12, 16).to(BF16))

    def run(rows: slice) -> Tensor:
        step = Step.build(listed[rows], 16, machine.device)
        return attend(machine.launch, machine.target, q[rows], cache, step, 0.25)

    together = run(slice(0, 3))
    assert torch.equal(together, run(slice(0, 3)))
    for i in range(3):
        assert torch.equal(together[i : i + 1], run(slice(i, i + 1)))


def test_queries_may_be_a_view_into_a_wider_row(machine: Machine) -> None:
    listed, count = layout([(20, 3)], 16)
    cache, step = cache_on(machine, count, 16, 32), Step.build(listed, 16, machine.device)
    wide = machine.put(normal(3, 14 * 32).to(BF16))
    q = wide[:, : 12 * 32].view(3, 12, 32)
    got = attend(machine.launch, machine.target, q, cache, step, 0.2)
    again = attend(machine.launch, machine.target, q.contiguous(), cache, step, 0.2)
    assert torch.equal(got, again)


@pytest.mark.parametrize("length", [1, 256, 257, 8192, 8193, 131072, 202752])
def test_splits_cover_a_sequence_and_are_bounded(length: int) -> None:
    keys = attention.split_keys(length)
    splits = -(-length // keys)
    assert keys % attention.LEAST_SPLIT == 0 and splits <= attention.MOST_SPLITS
    assert (splits - 1) * keys < length <= splits * keys
