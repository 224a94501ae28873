"""Every op of a backend against the reference, case by case.

A check says how far the results are from the exact ones and how far they may be, what was seen to
run, and whether the same bits come out again and without neighbours. That is reported, and demanded
of a backend that promises it: by an attribute `deterministic` or `batch_invariant` that is true.

Where the reference's own function ran, a result proves nothing about the backend. For norm, gate,
rotation and router a backend may say so openly, by importing them: then the check is skipped. A
product, a mixture or an attention left to the reference fails.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from glm_portable.backends import reference
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.verify.call import Call, Tensors, bind, perform
from glm_portable.verify.cases import Case, named
from glm_portable.verify.results import Check, Status
from glm_portable.verify.suite.again import alone, last_alone, last_part, part, same_bits
from glm_portable.verify.suite.judge import Verdict, judge
from glm_portable.verify.suite.observe import Observed, observing

OWN = ("linear", "experts", "attend")
"""What every backend must bring itself."""

Yardstick = Callable[[Case, int, torch.dtype], tuple[Tensors, Tensors]]
"""What plain PyTorch makes of a case from a seed, in the type that is judged and in float64."""


def yardstick(case: Case, seed: int, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    call = case.call(seed)
    return perform(call, reference, dtype), perform(call, reference, torch.float64)


def check(
    ops: Ops,
    cases: Iterable[Case],
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    again: bool = True,
    known: Yardstick = yardstick,
) -> Iterator[Check]:
    """Each case in turn. again: whether to run it twice, and parts of it without their
    neighbours. known: where the reference's results come from, for who judges many backends."""
    for case in cases:
        begin = time.perf_counter()
        found = _check(ops, case, seed, dtype, again, known)
        yield _check_of(case, seconds=time.perf_counter() - begin, **found)


def _check_of(case: Case, **fields: Any) -> Check:
    return Check("ops", case.op, case.name, **fields)


def _check(
    ops: Ops, case: Case, seed: int, dtype: torch.dtype, again: bool, known: Yardstick
) -> dict[str, Any]:
    """The fields of a check."""
    if case.rounds_within and dtype != torch.bfloat16:
        note = f"it rounds to 8 bits within, which no bound follows in {dtype}; take bfloat16"
        return {"status": Status.SKIPPED, "note": note}
    call = case.call(seed)
    try:
        run, actual, seen = _observe(ops, call, dtype)
        repeated = _repeated(ops, call, dtype, run, actual) if again else {}
    except UsageError as error:
        return _refused(ops, case, seed, dtype, str(error))
    except Exception as error:  # whatever a backend dies of is what is wrong with it
        return {"status": Status.FAIL, "findings": (f"{type(error).__name__}: {error}",)}
    plain, true = known(case, seed, dtype)
    verdict = judge(call, actual, plain, true, case.exact)
    return _fields(ops, case, verdict, seen, repeated)


def _observe(
    ops: Ops, call: Call, dtype: torch.dtype
) -> tuple[Callable[[], dict[str, torch.Tensor]], dict[str, torch.Tensor], Observed]:
    with observing(ops) as (watched, seen):
        run = bind(call, watched, dtype)
        return run, _on_host(run()), seen


def _repeated(
    ops: Ops, call: Call, dtype: torch.dtype, run: Callable[[], Tensors], actual: Tensors
) -> dict[str, float]:
    """Measures, 1 or 0."""
    found = {"repeats": float(same_bits(_on_host(run()), actual))}
    same = [
        same_bits(of(fewer, perform(fewer, ops, dtype)), of(call, actual))
        for fewer, of in ((alone(call), part), (last_alone(call), last_part))
        if fewer is not None
    ]
    return found | ({"batch_invariant": float(all(same))} if same else {})


def _on_host(results: Tensors) -> dict[str, torch.Tensor]:
    return {name: value.cpu().clone() for name, value in results.items()}


def _refused(ops: Ops, case: Case, seed: int, dtype: torch.dtype, reason: str) -> dict[str, Any]:
    """Unsupported, unless it is the dialect of FP8 that this chip does not speak."""
    if case.twin:
        try:
            perform(named(case.op, case.twin).call(seed), ops, dtype)
        except UsageError:
            pass  # neither dialect: unsupported, for the reason at hand
        else:
            note = f"this chip's dialect of FP8 is the other one, which is checked: {reason}"
            return {"status": Status.SKIPPED, "note": note}
    return {"status": Status.UNSUPPORTED, "note": reason}


def _fields(
    ops: Ops, case: Case, verdict: Verdict, seen: Observed, repeated: dict[str, float]
) -> dict[str, Any]:
    findings = [*verdict.findings, *_broken_promises(ops, repeated)]
    fallback = ops.name != reference.name and seen.bodies[case.op] > 0
    if fallback and case.op in OWN:
        findings.append(f"the reference's own {case.op} ran in place of one of this backend's")
    fields = {"measures": {**verdict.measures, **repeated}, "kernels": seen.names()}
    if findings:
        return {"status": Status.FAIL, "findings": tuple(findings), **fields}
    if fallback:
        note = f"the reference's own {case.op} ran: it agrees with itself, which proves nothing"
        return {"status": Status.SKIPPED, "note": note, **fields}
    return {"status": Status.PASS, **fields}


def _broken_promises(ops: Ops, repeated: dict[str, float]) -> Iterator[str]:
    if getattr(ops, "deterministic", False) and repeated.get("repeats") == 0:
        yield "the same call gave other bits the second time, against the promise"
    if getattr(ops, "batch_invariant", False) and repeated.get("batch_invariant") == 0:
        yield "some rows have other bits without the rows beside them, against the promise"
