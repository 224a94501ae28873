"""The first token alone gives what it gives among others."""

from typing import Any

import pytest
import torch

from glm_portable.backends import reference
from glm_portable.verify.call import OPS, perform
from glm_portable.verify.cases import CASES, Case, named
from glm_portable.verify.suite.again import alone, part, same_bits

ONE_EACH = {
    "linear": "17 tokens, 704 to 192, bias", "rms_norm": "with residual",
    "silu_mul": "352 columns", "rope_store": "after the norm", "attend": "mixed",
    "route": "small bias", "experts": "crowded",
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_the_part_is_what_the_call_alone_gives(op: str) -> None:
    call = named(op, ONE_EACH[op]).call()
    first = alone(call)
    assert first is not None
    results = [perform(c, reference, torch.float64) for c in (first, call)]
    ours, theirs = part(first, results[0]), part(call, results[1])
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].shape == theirs[name].shape and len(ours[name])
        assert torch.allclose(ours[name].double(), theirs[name].double(), rtol=1e-10), name


def test_one_token_has_no_neighbours() -> None:
    for case in (named("linear", "one token, bias"), named("attend", "first token")):
        assert alone(case.call()) is None


def test_nan_equals_nan_and_zero_not_minus_zero() -> None:
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert same_bits({"y": nan}, {"y": nan.clone()})
    assert not same_bits({"y": zero}, {"y": -zero})


def test_every_case_can_be_run_alone() -> None:
    for case in CASES:
        if case.op not in ("linear", "experts") and "keys" not in case.name:
            _run(case)


def _run(case: Case) -> None:
    first = alone(case.call())
    results: Any = None if first is None else perform(first, reference, torch.bfloat16)
    assert first is None or len(results)
