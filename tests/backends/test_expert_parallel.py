"""Choices that belong to other ranks add nothing, on the host's backends."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from glm_portable.backends import cpu, reference
from glm_portable.ops import Weight
from glm_portable.verify.cases.data import FP8, INT8, choices, normal, quantised, weight
from tests.backends.dispatch import Filled

BACKENDS = pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])


def layer(dtype: torch.dtype, code: torch.dtype | None = None) -> list[Weight]:
    shapes = ((4, 64, 32), (4, 32, 32))
    if code is None:
        return [weight(*s, dtype=dtype) for s in shapes]
    return [quantised(*s, dtype=dtype, kind=code, dynamic=True) for s in shapes]


def part(w: Weight, first: int, last: int) -> Weight:
    scale = None if w.scale is None else w.scale[first:last]
    return replace(w, data=w.data[first:last], scale=scale)


@BACKENDS
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("code", [None, FP8, INT8], ids=str)
def test_the_ranks_add_up_to_all_experts(backend: Any, tokens: int, code: Any) -> None:
    gate_up, down = layer(torch.float32, code)
    x, weights = normal(tokens, 32), torch.rand(tokens, 3) + 0.1
    ids = choices(tokens, "spread", 4, 3)
    whole = backend.experts(x, backend.pack(gate_up), backend.pack(down), weights, ids)
    parts = torch.zeros_like(whole)
    for first, last in ((0, 1), (1, 3), (3, 4)):
        mine = [backend.pack(part(w, first, last)) for w in (gate_up, down)]
        with Filled(torch.nan):
            parts += backend.experts(x, *mine, weights, ids - first)
    assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 40])
def test_tokens_without_an_expert_here_are_zero(
    backend: Any, dtype: torch.dtype, tokens: int
) -> None:
    gate_up, down = (backend.pack(w) for w in layer(dtype))
    x, weights = normal(tokens, 32).to(dtype), torch.ones(tokens, 2)
    ids = torch.tensor([[-1, 4]] * tokens, dtype=torch.int32)
    with Filled(torch.nan):
        got = backend.experts(x, gate_up, down, weights, ids)
    assert got.dtype == dtype and torch.equal(got, torch.zeros(tokens, 32, dtype=dtype))
