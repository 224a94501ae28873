"""Choices that belong to other ranks add nothing, whatever unset memory holds."""

from typing import Any

import pytest
import torch

from glm_portable.backends import reference
from glm_portable.kernels import align as module
from glm_portable.kernels.align import align
from glm_portable.verify.cases import CASES, Case
from glm_portable.verify.cases.data import normal, on, quantised, weight
from tests.backends.dispatch import Filled
from tests.kernels.inputs import BF16, FP8, full
from tests.kernels.machine import Machine

PARALLEL = [case for case in CASES if case.name.startswith("expert parallel")]


@pytest.mark.parametrize(
    "case", [PARALLEL[0], *(pytest.param(c, marks=full) for c in PARALLEL[1:])], ids=str
)
def test_unset_memory_changes_no_bit(machine: Machine, case: Case) -> None:
    clean = case.run(machine.ops, BF16)["y"]
    with Filled(torch.nan):
        assert torch.equal(case.run(machine.ops, BF16)["y"], clean)


@pytest.mark.parametrize("dynamic", [False, True], ids=["bf16", "w8a8"])
def test_tokens_without_an_expert_here_are_zero(machine: Machine, dynamic: bool) -> None:
    ops = machine.ops

    def packed(*shape: int) -> Any:
        if dynamic:
            return ops.pack(on(ops, quantised(*shape, dtype=BF16, kind=FP8, dynamic=True)))
        return ops.pack(on(ops, weight(*shape, dtype=BF16)))

    ids = machine.put(torch.tensor([[-1, 4], [1, 900], [-900, 5]], dtype=torch.int32))
    x, weights = machine.put(normal(3, 64).to(BF16)), machine.put(torch.ones(3, 2))
    gate_up, down = packed(4, 64, 64), packed(4, 64, 32)
    with Filled(torch.nan):
        got = ops.experts(x, gate_up, down, weights, ids)
        nowhere = ops.experts(x, gate_up, down, weights, ids.where(ids != 1, 7))
    assert got[1].any() and not got[[0, 2]].any() and not nowhere.any()
    alone = ops.experts(x[1:2], gate_up, down, weights[1:2, :1], ids[1:2, :1])
    assert torch.equal(got[1:2], alone)


def test_no_tile_takes_a_choice_of_another_rank(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    ids = torch.randint(-6, 9, (30, 2), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    result = align(machine.launch, machine.put(ids), 3, 4)
    tiles = result.rows.view(-1, 4)[result.experts >= 0].cpu()
    taken = tiles[tiles < ids.numel()].tolist()
    assert sorted(taken) == [i for i, e in enumerate(ids.flatten().tolist()) if 0 <= e < 3]


def test_the_reference_agrees() -> None:
    """The cases compare with it; here it is compared with a sum over the local choices alone."""
    gate_up, down = weight(4, 16, 8, dtype=torch.float64), weight(4, 8, 8, dtype=torch.float64)
    x, ids = normal(2, 8).double(), torch.tensor([[3, -1], [4, 0]], dtype=torch.int32)
    got = reference.experts(x, gate_up, down, torch.tensor([[2.0, 9.0], [9.0, 0.5]]), ids)
    local = torch.tensor([[3], [0]], dtype=torch.int32)
    expected = reference.experts(x, gate_up, down, torch.tensor([[2.0], [0.5]]), local)
    assert torch.allclose(got, expected)
