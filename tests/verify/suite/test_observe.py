"""What ran is seen, under whatever name it was reached."""

import sys
from types import SimpleNamespace
from typing import Any

import torch

from glm_portable.backends import cpu, reference
from glm_portable.backends.reference import experts as another_name
from glm_portable.verify.call import OPS, bind
from glm_portable.verify.cases import named
from glm_portable.verify.suite.observe import is_reference, observing

BF16 = torch.bfloat16


def seen(ops: Any, op: str, name: str) -> dict[str, int]:
    with observing(ops) as (watched, found):
        bind(named(op, name).call(), watched, BF16)()
    return found.names()


def disguised(**bodies: Any) -> Any:
    parts = {name: getattr(cpu, name) for name in cpu.__all__}
    return SimpleNamespace(**parts | {"name": "disguised"} | bodies)


def test_a_reference_under_another_name_is_seen() -> None:
    found = seen(disguised(experts=lambda *a: another_name(*a)), "experts", "one token")
    assert found["reference.experts"] == 1 and found["reference.linear"] == 8


def test_a_reference_behind_two_calls_is_seen() -> None:
    def attend(*args: Any) -> Any:
        return sorted([args], key=lambda a: reference.attend(*a).sum().item()) and cpu.attend(*args)

    assert seen(disguised(attend=attend), "attend", "decode of one")["reference.attend"] == 1


def test_the_backends_own_is_not_taken_for_the_references() -> None:
    assert "reference.linear" not in seen(cpu, "linear", "one token, bias")
    assert seen(cpu, "silu_mul", "odd width") == {"reference.silu_mul": 1}


def test_products_of_torch_and_operators_of_others() -> None:
    assert seen(reference, "linear", "one token, bias")["torch.addmm"] == 1
    assert any(name.startswith("mkldnn.") for name in seen(cpu, "linear", "one token, bias"))


def test_launches_are_counted() -> None:
    def launch(*args: Any, **rest: Any) -> None:
        pass

    class Ops:
        def __init__(self) -> None:
            self.launch = launch

        def silu_mul(self, x: torch.Tensor) -> torch.Tensor:
            kernel = SimpleNamespace(__name__="silu", fn=SimpleNamespace(__name__="silu"))
            self.launch(kernel, (1,), options={})
            return x

    ops = Ops()
    with observing(ops) as (watched, found):  # type: ignore[arg-type]  # the op that is called
        watched.silu_mul(torch.ones(1))
    assert found.names() == {"silu": 1} and ops.launch is launch


def test_a_tracer_that_was_there_goes_on_and_is_put_back() -> None:
    calls = []

    def tracer(frame: Any, event: str, argument: Any) -> None:
        calls.append(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        seen(reference, "silu_mul", "odd width")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert "silu_mul" in calls


def test_which_functions_are_the_references_by_import() -> None:
    own = {op for op in OPS if not is_reference(cpu, op)}
    assert own == {"linear", "attend", "route", "experts"}
