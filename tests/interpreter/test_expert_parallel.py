"""Choices that belong to other ranks add nothing, whatever unset memory holds."""

from typing import Any

import pytest
import torch

from glm_portable.backends import reference
from glm_portable.backends.rocm import virtual
from glm_portable.kernels import align as module
from glm_portable.kernels.align import align
from glm_portable.virtual import interpreter
from tests.backends.cases import CASES, Case, normal, quantised, weight
from tests.backends.dispatch import Filled
from tests.interpreter.kernel_inputs import BF16, FP8

OPS = virtual("gfx942", interpreter.launch)
PARALLEL = [case for case in CASES if case.name.startswith("expert parallel")]


@pytest.mark.parametrize("case", PARALLEL, ids=str)
def test_unset_memory_changes_no_bit(case: Case) -> None:
    clean = case.run(OPS, BF16)
    with Filled(torch.nan):
        assert torch.equal(case.run(OPS, BF16), clean)


@pytest.mark.parametrize("dynamic", [False, True], ids=["bf16", "w8a8"])
def test_tokens_without_an_expert_here_are_zero(dynamic: bool) -> None:
    def packed(*shape: int) -> Any:
        if dynamic:
            return OPS.pack(quantised(*shape, dtype=BF16, kind=FP8, dynamic=True))
        return OPS.pack(weight(*shape, dtype=BF16))

    ids = torch.tensor([[-1, 4], [1, 900], [-900, 5]], dtype=torch.int32)
    x, weights = normal(3, 64).to(BF16), torch.ones(3, 2)
    gate_up, down = packed(4, 64, 64), packed(4, 64, 32)
    with Filled(torch.nan):
        got = OPS.experts(x, gate_up, down, weights, ids)
        nowhere = OPS.experts(x, gate_up, down, weights, ids.where(ids != 1, 7))
    assert got[1].any() and not got[[0, 2]].any() and not nowhere.any()
    alone = OPS.experts(x[1:2], gate_up, down, weights[1:2, :1], ids[1:2, :1])
    assert torch.equal(got[1:2], alone)


def test_no_tile_takes_a_choice_of_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    ids = torch.randint(-6, 9, (30, 2), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    result = align(interpreter.launch, ids, 3, 4)
    tiles = result.rows.view(-1, 4)[result.experts >= 0]
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
