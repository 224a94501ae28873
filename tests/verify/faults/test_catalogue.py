"""The catalogue: every fault does something, and nothing but what it says."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.backends import reference
from glm_portable.errors import UsageError
from glm_portable.verify.call import OPS, Call, perform
from glm_portable.verify.cases import CASES, cost
from glm_portable.verify.faults.catalogue import FAULTS, named
from glm_portable.verify.faults.fault import BOTH, LEVELS, Fault, faulty
from glm_portable.verify.suite.again import same_bits

REFERENCE = ops.load("reference")
IN_OPS = [fault for fault in FAULTS if fault.bodies]
SMALL = sorted(
    ((case, call) for case in CASES if cost(call := case.call()) <= 400_000),
    key=lambda entry: cost(entry[1]),
)
TYPES = (torch.bfloat16, torch.float32)


def differs(fault: Fault, call: Call, dtype: torch.dtype) -> bool:
    honest = perform(call, REFERENCE, dtype)
    return any(not same_bits(perform(call, fault.on(REFERENCE), dtype), honest) for _ in range(3))


def test_there_are_many_and_each_says_what_it_stands_for() -> None:
    assert len(FAULTS) >= 200 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert bool(fault.bodies) != (fault.spoil is not None), fault.name
        assert fault.levels <= set(LEVELS) and fault.stands_for, fault.name
        assert bool(fault.why) == (fault.levels != BOTH), fault.name
        assert ("ops" in fault.levels) == bool(fault.bodies), fault.name
        assert "|" not in fault.name + fault.op + fault.stands_for + fault.why
    escape = [fault.name for fault in FAULTS if not fault.levels]
    assert escape == ["rope-angles-in-bf16"]  # longer prompts show it


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_faults_that_real_systems_had(op: str) -> None:
    assert any("#" in fault.stands_for for fault in IN_OPS if op in fault.bodies)


PROVES_NOTHING = {"products-fall-back", "attend-falls-back"}
"""The reference in place of the reference."""


@pytest.mark.parametrize("fault", IN_OPS, ids=lambda fault: fault.name)
def test_a_fault_changes_a_result_and_no_other_op(fault: Fault) -> None:
    wrong = fault.on(REFERENCE)
    for op in {*OPS, "pack"} - set(fault.bodies):
        assert getattr(wrong, op) is getattr(reference, op)
    if fault.name in PROVES_NOTHING:
        return
    assert any(differs(fault, call, dtype) for call in reached(fault) for dtype in TYPES)


def reached(fault: Fault) -> Iterator[Call]:
    """The cheap ones first."""
    yield from (call for case, call in SMALL if fault.reaches(case.op))
    yield from (case.call() for case in CASES if fault.reaches(case.op))


@pytest.mark.parametrize("fault", IN_OPS, ids=lambda fault: fault.name)
def test_a_fault_leaves_nothing_behind(fault: Fault) -> None:
    """Neither in the inputs nor in the honest backend."""
    call = next(reached(fault))
    inputs = {name: value.clone() for name, value in call.tensors.items()}
    before = perform(call, REFERENCE, torch.bfloat16)
    perform(call, fault.on(REFERENCE), torch.bfloat16)
    assert same_bits(inputs, call.tensors)
    assert same_bits(before, perform(call, REFERENCE, torch.bfloat16))


def test_a_name_in_part_finds_faults() -> None:
    assert [fault.name for fault in named("norm-centred")] == ["norm-centred"]
    assert len(named(None)) == len(FAULTS)
    with pytest.raises(UsageError, match="no fault has 'nonsense' in its name"):
        named("nonsense")


def test_a_faulty_backend_is_otherwise_the_honest_one() -> None:
    def negated(honest: object, x: Tensor) -> Tensor:
        return -x

    wrong = faulty(REFERENCE, {"silu_mul": negated}, {"deterministic": True})
    assert wrong.name == "reference" and wrong.page_size == REFERENCE.page_size
    assert getattr(wrong, "deterministic") is True  # noqa: B009  # no attribute of Ops
    assert torch.equal(wrong.silu_mul(torch.ones(1)), -torch.ones(1))
    assert not hasattr(wrong, "launch") and not hasattr(wrong, "nonsense")


def test_kernels_of_a_faulty_backend_can_be_observed() -> None:
    class Chip:
        launch = staticmethod(lambda: "launched")

        def linear(self) -> str:
            return self.launch()

    chip = Chip()
    wrong: object = faulty(chip, {"linear": lambda honest: f"not {honest()}"})  # type: ignore[arg-type]  # of Ops no more is needed
    setattr(wrong, "launch", lambda: "seen")  # noqa: B010  # no attribute of Ops
    assert wrong.linear() == "not seen"  # type: ignore[attr-defined]  # as above
    assert chip.linear() == "launched"
