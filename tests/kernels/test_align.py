"""Sorting the choices by expert into whole tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_portable.kernels import align as module
from glm_portable.kernels.align import align, most_tiles
from glm_portable.verify.cases.data import choices
from tests.kernels.inputs import full
from tests.kernels.machine import Machine


def check(machine: Machine, picks: list[int], count: int, block_m: int, k: int = 1) -> None:
    """Every choice in exactly one tile, of its expert; in order; tiles filled up with none."""
    experts = torch.tensor(picks, dtype=torch.int32).view(-1, k)
    result = align(machine.launch, machine.put(experts), count, block_m)
    assert len(result.experts) == most_tiles(len(picks), count, block_m)
    expected_rows, expected_experts = [], []
    for expert in range(count):
        rows = [i for i, e in enumerate(picks) if e == expert]
        tiles = -(-len(rows) // block_m)
        expected_rows += rows + [len(picks)] * (tiles * block_m - len(rows))
        expected_experts += [expert] * tiles
    used = len(expected_experts)
    assert result.experts.tolist() == expected_experts + [-1] * (len(result.experts) - used)
    assert result.rows[: used * block_m].tolist() == expected_rows


@full
@settings(max_examples=12, deadline=None)
@given(picks=st.lists(st.integers(0, 5), min_size=1, max_size=40), block_m=st.sampled_from([1, 4]))
def test_any_routing(machine: Machine, picks: list[int], block_m: int) -> None:
    check(machine, picks, 6, block_m)


def test_all_choices_on_the_last_expert(machine: Machine) -> None:
    check(machine, [4] * 33, 5, 16)


def test_one_choice_a_tile(machine: Machine) -> None:
    check(machine, [4, 3, 2, 1, 0], 5, 16)


def test_experts_of_other_ranks_are_left_out(machine: Machine) -> None:
    """Under expert parallelism a rank sees choices beyond its own experts."""
    check(machine, [7, 1, 3, 0, 6, 1, 5, 2], 4, 16)
    check(machine, [9, 8, 7, 6], 4, 16)


def test_choices_in_several_chunks(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    g = torch.Generator().manual_seed(0)
    check(machine, torch.randint(0, 3, (60,), generator=g).tolist(), 3, 4, k=4)


@pytest.mark.parametrize(
    ("experts", "k", "tokens"),
    [(160, 8, 17), pytest.param(128, 8, 257, marks=full), pytest.param(20, 8, 64, marks=full)],
)
@pytest.mark.parametrize("kind", ["spread", "crowded", "same"])
def test_routings_of_the_models(
    machine: Machine, kind: str, experts: int, k: int, tokens: int
) -> None:
    picks = choices(tokens, kind, experts, k)
    check(machine, picks.flatten().tolist(), experts, 16 if tokens < 100 else 64, k)


@given(
    counts=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    block_m=st.sampled_from([1, 16, 64, 128]),
)
def test_tiles_suffice_for_every_routing(counts: list[int], block_m: int) -> None:
    needed = sum(-(-n // block_m) for n in counts)
    assert needed <= most_tiles(sum(counts), len(counts), block_m)
