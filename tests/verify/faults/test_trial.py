"""Noticed or not: the runner, on faults whose size is known."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.verify.cases import CASES
from glm_portable.verify.faults.catalogue import FAULTS, named
from glm_portable.verify.faults.fault import Fault
from glm_portable.verify.faults.model import AROUND
from glm_portable.verify.faults.model_level import ModelLevel
from glm_portable.verify.faults.ops_level import OpsLevel
from glm_portable.verify.faults.results import of_first
from glm_portable.verify.faults.trial import Rate, Trial, alarms, trial
from glm_portable.verify.results import Check, Status

CPU = ops.load("cpu")
GATES = [case for case in CASES if case.op == "silu_mul"]
ROUTERS = [case for case in CASES if case.op == "route"]


def scaled(factor: float) -> Fault:
    def change(x: Tensor) -> Tensor:
        return (x.double() * factor).to(x.dtype)

    return Fault(f"times {factor}", "silu_mul", "a test", bodies={"silu_mul": of_first(change)})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_fault_that_is_seen_is_killed_by_the_first_check_that_sees_it() -> None:
    found = trial(scaled(2.0), "ops", OpsLevel(CPU, GATES))
    assert found.killed and found.due and not found.missed and found.checks == 1
    assert found.killed_by == f"silu_mul: {GATES[0].name}, bfloat16" and "error" in found.finding


def test_a_fault_too_small_to_see_survives() -> None:
    found = trial(scaled(1 + 1e-9), "ops", OpsLevel(CPU, GATES))
    assert not found.killed and found.missed and found.killed_by == found.finding == ""
    # In BF16 and in float32, once and then twice.
    assert found.checks == 4 * len(GATES)


def test_rates_count_what_must_be_noticed() -> None:
    both = scaled(2.0)
    ours = Fault("x", "attend", "a test", frozenset({"ops"}), "a reason")
    trials = [
        Trial(both, "ops", 1, "a check"), Trial(ours, "ops", 3), Trial(both, "model", 1, "a check"),
        Trial(ours, "model", 3),
    ]  # fmt: skip
    assert [t.missed for t in trials] == [False, True, False, False]
    assert str(Rate.of(trials, "ops")) == "ops: 1 of 2 killed, 50.0%"
    assert str(Rate.of(trials, "model")) == "model: 1 of 1 killed, 100.0%"
    assert str(Rate.of([], "ops")) == "ops: 0 of 0 killed, no faults"


def test_what_a_fault_raises_is_no_kill() -> None:
    def checks(fault: Fault | None, seed: int) -> Iterator[Check]:
        raise TypeError("the fault is broken")
        yield

    with pytest.raises(TypeError):
        trial(scaled(2.0), "ops", checks)


def test_clean_runs_have_their_own_inputs_and_alarm_where_one_fails() -> None:
    def checks(fault: Fault | None, seed: int) -> Iterator[Check]:
        assert fault is None
        yield Check("ops", "linear", "a", Status.PASS)
        if seed == 2:
            yield Check("ops", "linear", "b", Status.FAIL, ("wrong",))

    assert [(seed, len(failed)) for seed, failed in alarms(checks, range(1, 4))] == [
        (1, 0), (2, 1), (3, 0),
    ]  # fmt: skip


def test_honest_gates_and_routers_raise_no_alarm() -> None:
    assert not any(failed for _, failed in alarms(OpsLevel(CPU, GATES + ROUTERS), range(3)))


@pytest.mark.parametrize("fault", named("router-"), ids=lambda fault: fault.name)
def test_faults_of_the_router_are_noticed_op_by_op(fault: Fault, routers: OpsLevel) -> None:
    assert "ops" in fault.levels and trial(fault, "ops", routers).killed


@pytest.fixture(scope="module")
def routers() -> OpsLevel:
    return OpsLevel(CPU, ROUTERS)


@pytest.fixture(scope="module")
def in_the_model() -> ModelLevel:
    return ModelLevel(CPU)


@pytest.mark.parametrize("fault", [f for f in AROUND if f.levels], ids=lambda fault: fault.name)
def test_faults_around_the_ops_are_noticed_in_the_model(
    fault: Fault, in_the_model: ModelLevel
) -> None:
    found = trial(fault, "model", in_the_model)
    assert found.killed, fault.name


def test_the_honest_model_raises_no_alarm_whatever_ran_before(in_the_model: ModelLevel) -> None:
    """The reference's results are kept from one model to the next."""
    nothing = Fault("none", "model", "a test", spoil=lambda model: None)
    first, second = (trial(nothing, "model", in_the_model) for _ in range(2))
    assert not first.killed and first.checks == second.checks == 8
    assert not any(failed for _, failed in alarms(in_the_model, [0, 1]))


def test_faults_that_only_fp8_shows_are_put_into_fp8(in_the_model: ModelLevel) -> None:
    fault = next(f for f in FAULTS if f.name == "scale-of-neighbour")
    assert "fp8" in trial(fault, "model", in_the_model).killed_by
