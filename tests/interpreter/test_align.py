"""Sorting the choices by expert into whole tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_portable.kernels import align as module
from glm_portable.kernels.align import align, most_tiles
from glm_portable.virtual.interpreter import launch


def check(choices: list[int], count: int, block_m: int, k: int = 1) -> None:
    """Every choice in exactly one tile, of its expert; in order; tiles filled up with none."""
    experts = torch.tensor(choices, dtype=torch.int32).view(-1, k)
    result = align(launch, experts, count, block_m)
    assert len(result.experts) == most_tiles(len(choices), count, block_m)
    expected_rows, expected_experts = [], []
    for expert in range(count):
        rows = [i for i, e in enumerate(choices) if e == expert]
        tiles = -(-len(rows) // block_m)
        expected_rows += rows + [len(choices)] * (tiles * block_m - len(rows))
        expected_experts += [expert] * tiles
    used = len(expected_experts)
    assert result.experts.tolist() == expected_experts + [-1] * (len(result.experts) - used)
    assert result.rows[: used * block_m].tolist() == expected_rows


@settings(max_examples=12, deadline=None)
@given(
    choices=st.lists(st.integers(0, 5), min_size=1, max_size=40), block_m=st.sampled_from([1, 4])
)
def test_any_routing(choices: list[int], block_m: int) -> None:
    check(choices, 6, block_m)


def test_all_choices_on_the_last_expert_and_one_choice_a_tile() -> None:
    check([4] * 33, 5, 16)
    check([4, 3, 2, 1, 0], 5, 16)


def test_choices_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    g = torch.Generator().manual_seed(0)
    check(torch.randint(0, 3, (60,), generator=g).tolist(), 3, 4, k=4)


@given(
    counts=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    block_m=st.sampled_from([1, 16, 64, 128]),
)
def test_tiles_suffice_for_every_routing(counts: list[int], block_m: int) -> None:
    needed = sum(-(-n // block_m) for n in counts)
    assert needed <= most_tiles(sum(counts), len(counts), block_m)
