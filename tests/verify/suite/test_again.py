"""The first token alone gives what it gives among others."""

import pytest
import torch

from glm_portable.backends import reference
from glm_portable.verify.call import OPS, perform
from glm_portable.verify.cases import CASES, named
from glm_portable.verify.suite.again import alone, last_alone, last_part, part, same_bits

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


@pytest.mark.parametrize("op", OPS)
def test_the_last_token_is_what_it_is_as_a_step_of_its_own(op: str) -> None:
    call = named(op, ONE_EACH[op]).call()
    last = last_alone(call)
    assert last is not None
    results = [perform(c, reference, torch.float64) for c in (last, call)]
    ours, theirs = last_part(last, results[0]), last_part(call, results[1])
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].shape == theirs[name].shape and len(ours[name]) == 1
        assert torch.allclose(ours[name].double(), theirs[name].double(), rtol=1e-10), name


def test_one_token_has_no_neighbours() -> None:
    for case in (named("linear", "one token, bias"), named("attend", "first token")):
        assert alone(case.call()) is None and last_alone(case.call()) is None


def test_nan_equals_nan_and_zero_not_minus_zero() -> None:
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert same_bits({"y": nan}, {"y": nan.clone()})
    assert not same_bits({"y": zero}, {"y": -zero})


def test_a_case_alone_gives_the_first_rows_of_all() -> None:
    for case in CASES:
        call = case.call()
        first = alone(call)
        if first is None or case.op in ("linear", "experts") or "keys" in case.name:
            continue
        rows = part(first, perform(first, reference, torch.float64))
        whole = part(call, perform(call, reference, torch.float64))
        assert rows.keys() == whole.keys(), case
        for name, x in rows.items():
            close = torch.isclose(x.double(), whole[name].double(), rtol=1e-9, equal_nan=True)
            assert close.all(), (case, name)
