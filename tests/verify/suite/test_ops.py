"""What a check of a backend comes to: passes, failures, refusals, promises, borrowed bodies."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glm_portable.backends import cpu, reference
from glm_portable.errors import UsageError
from glm_portable.verify.cases import named
from glm_portable.verify.results import Check, Status
from glm_portable.verify.suite.ops import check
from glm_portable.verify.suite.perf import timed
from glm_portable.verify.suite.support import ASKED, supported

LINEAR = named("linear", "17 tokens, 704 to 192, bias")


def backend(**changes: Any) -> Any:
    parts = {name: getattr(cpu, name) for name in cpu.__all__}
    return SimpleNamespace(**parts | changes)


def one(ops: Any, op: str = "linear", name: str = LINEAR.name, **options: Any) -> Check:
    (found,) = check(ops, [named(op, name)], **options)
    return found


def test_a_pass_says_what_ran_and_how_far_off_it_is() -> None:
    found = one(cpu)
    assert (found.level, found.subject, found.name) == ("ops", "linear", LINEAR.name)
    assert found.status is Status.PASS and found.kernels and found.seconds > 0
    assert 0 < found.measures["error"] <= found.measures["allowed"]
    assert found.measures["repeats"] == 1 and "batch_invariant" in found.measures


def test_a_failure() -> None:
    found = one(backend(linear=lambda *a: cpu.linear(*a) * 2))
    assert found.status is Status.FAIL and any("slope" in f for f in found.findings)


def test_what_a_backend_dies_of_is_a_failure() -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("illegal address")

    found = one(backend(linear=broken))
    assert found.status is Status.FAIL and found.findings == ("RuntimeError: illegal address",)


def refuse(w: Any) -> Any:
    if w.scale is None:
        return cpu.pack(w)
    raise UsageError("no such format here.")


def test_a_refusal_is_unsupported() -> None:
    found = one(backend(pack=refuse), "linear", "fp8 per channel")
    assert found.status is Status.UNSUPPORTED and found.note == "no such format here."


def test_the_other_dialect_of_fp8_may_be_refused() -> None:
    def fussy(q: Any, cache: Any, step: Any, scale: float) -> Any:
        if cache.k_PSGC.dtype == torch.float8_e4m3fn:
            raise UsageError("not this dialect.")
        return cpu.attend(q, cache, step, scale)

    def neither(q: Any, cache: Any, step: Any, scale: float) -> Any:
        raise UsageError("no FP8.")

    name = "decode of unequal lengths, {} pages, scales 2 and 0.25"
    ocp, fnuz = (name.format(kind) for kind in ("e4m3fn", "e4m3fnuz"))
    assert one(backend(attend=fussy), "attend", ocp).status is Status.SKIPPED
    assert one(backend(attend=fussy), "attend", fnuz).status is Status.PASS
    assert one(backend(attend=neither), "attend", ocp).status is Status.UNSUPPORTED


@pytest.mark.parametrize("op, name", [("linear", LINEAR.name), ("experts", "one token")])
def test_a_fallback_to_the_reference_is_not_a_pass(op: str, name: str) -> None:
    body = getattr(reference, op)
    borrowed = backend(pack=reference.pack, **{op: lambda *a: body(*a)})
    found = one(borrowed, op, name)
    assert found.status is Status.FAIL and "reference's own" in found.findings[0]
    assert found.kernels[f"reference.{op}"] == 1


def test_an_op_that_may_be_borrowed_is_skipped() -> None:
    found = one(cpu, "silu_mul", "odd width")
    assert found.status is Status.SKIPPED and "proves nothing" in found.note


def test_a_borrowed_op_that_is_wrong_fails() -> None:
    found = one(backend(silu_mul=lambda x: reference.silu_mul(x) * 2), "silu_mul", "odd width")
    assert found.status is Status.FAIL


def test_the_reference_itself_passes() -> None:
    assert one(reference).status is Status.PASS


class Restless:
    """A product whose last bit depends on the run, and on how many rows there are."""

    def __init__(self, by_run: bool) -> None:
        self.by_run, self.runs = by_run, 0

    def __call__(self, x: Any, w: Any, bias: Any = None) -> Any:
        y, self.runs = cpu.linear(x, w, bias), self.runs + 1
        flipped = self.runs % 2 if self.by_run else len(x) == 1
        if flipped:
            y.view(torch.int16)[0, 0] ^= 1
        return y


@pytest.mark.parametrize("by_run, measure, promise", [
    (True, "repeats", "deterministic"), (False, "batch_invariant", "batch_invariant"),
])  # fmt: skip
def test_bits_that_change_are_reported_and_fail_against_a_promise(
    by_run: bool, measure: str, promise: str
) -> None:
    found = one(backend(linear=Restless(by_run)))
    assert found.measures[measure] == 0 and found.status is Status.PASS
    found = one(backend(linear=Restless(by_run), **{promise: True}))
    assert found.status is Status.FAIL and "promise" in found.findings[0]


def test_rounding_within_says_nothing_in_float32() -> None:
    found = one(cpu, "experts", "fp8, dynamic activations", dtype=torch.float32)
    assert found.status is Status.SKIPPED and "bfloat16" in found.note


def test_one_run_is_enough_where_runs_are_dear() -> None:
    assert "repeats" not in one(cpu, again=False).measures


def test_support_names_what_is_borrowed_and_refused() -> None:
    found = {(c.subject, c.name): c for c in supported(backend(pack=refuse, name="other"))}
    assert found["silu_mul", "whose it is"].note == "the reference's, by import"
    assert found["linear", "whose it is"].note == "own: backends.cpu.linear"
    assert found["linear", "fp8, a scale a channel"].status is Status.UNSUPPORTED
    assert found["attend", "an fp8 cache, e4m3fn"].status is Status.PASS
    assert {op for op, _, _ in ASKED} == {op for op, _ in found}


def test_times_of_both() -> None:
    (found,) = timed(cpu, [LINEAR])
    assert found.measures["ms"] > 0 and found.measures["reference_ms"] > 0
