"""What computes in deterministic inference: no bit of a row depends on the rows beside it."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable import ops, pocket
from glm_portable.backends import cpu, reference
from glm_portable.backends.cpu import alike, native
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.verify.cases import CASES, Case, cost
from glm_portable.verify.cases.data import FP8, normal, quantised, weight
from glm_portable.verify.faults.catalogue import named
from glm_portable.verify.faults.fault import Fault, faulty
from glm_portable.verify.suite.again import same_bits
from glm_portable.verify.suite.ops import check

DTYPES = [torch.float32, torch.bfloat16]
TOKENS = [2, 3, 7, 8, 9, 16, 17, 25, 64, 130]
ROWS_ALIKE: Ops = cpu.rows_alike()
AFFORDED = 300_000
SMALL = [case for case in CASES if cost(case.call()) <= AFFORDED]
PROMISED = {"batch_invariant": True}


@pytest.fixture(params=["native", "oneDNN"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The libraries' products are there everywhere, and the native ones where they can be."""
    if request.param == "oneDNN":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("this processor has no AVX512-BF16")
    return str(request.param)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def failed(backend: Ops, cases: list[Case], dtype: torch.dtype) -> list[str]:
    """What `verify ops` says of a backend."""
    found = check(backend, cases, dtype=dtype)
    return [f"{c.subject}, {c.name}: {f}" for c in found for f in c.findings]


NATIVE = ("native", torch.bfloat16)  # which is all that it is for


@pytest.mark.parametrize(
    ("kernel", "dtype"), [NATIVE, *(("oneDNN", d) for d in DTYPES)], indirect=["kernel"], ids=str
)
def test_verify_ops_finds_nothing(kernel: str, dtype: torch.dtype) -> None:
    """Neither in the numbers nor in the promise."""
    assert failed(ROWS_ALIKE, SMALL, dtype) == []


def test_the_reference_one_by_one_keeps_the_promise() -> None:
    one_by_one = reference.rows_alike()
    assert one_by_one.name == "reference" and getattr(one_by_one, "batch_invariant")  # noqa: B009  # no attribute of Ops
    assert failed(one_by_one, SMALL, torch.float32) == []


@pytest.mark.parametrize("fault", named("-depends-on-"), ids=lambda fault: fault.name)
def test_a_broken_promise_is_noticed(fault: Fault) -> None:
    """Of a kernel that depends on the number of rows, on the chunk, or on the place in the step."""
    cases = [case for case in SMALL if case.op == fault.op]
    found = failed(fault.on(ROWS_ALIKE), cases, torch.bfloat16)
    assert any("against the promise" in finding for finding in found)


def test_the_default_kernels_could_not_promise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's sigmoid of what is behind the last whole vector of a step is another one."""
    monkeypatch.setattr(native, "library", lambda: None)
    promised = faulty(as_ops(cpu), {}, PROMISED)
    cases = [case for case in SMALL if case.op == "route"]
    assert any("against the promise" in finding for finding in failed(promised, cases, DTYPES[0]))


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [NATIVE, *(("oneDNN", d) for d in (*DTYPES, torch.float64))],
    indirect=["kernel"],
    ids=str,
)
@pytest.mark.parametrize("width", [20, 65, 176])
def test_every_row_of_any_number_of_rows(
    kernel: str, two_threads: None, dtype: torch.dtype, width: int
) -> None:
    x = normal(TOKENS[-1], width).to(dtype)
    packed = alike.pack(weight(37, width, dtype=dtype))
    gate, bias = normal(16, width, seed=3), normal(16, seed=4)
    config = ModelConfig.load(pocket.FOLDER)
    ops_of_rows: list[Callable[[Tensor], Tensor]] = [
        lambda rows: alike.linear(rows, packed),
        lambda rows: alike.silu_mul(torch.cat([rows, rows.flip(-1)], -1)),
        lambda rows: alike.route(rows, gate, bias, config)[0],
    ]
    for y in ops_of_rows:
        alone = torch.cat([y(row) for row in torch.split(x, 1)])
        for count in TOKENS:
            assert torch.equal(bits(y(x[:count])), bits(alone[:count])), count
            assert torch.equal(bits(y(x[-count:])), bits(alone[-count:])), count


def test_activations_that_threads_share(two_threads: None) -> None:
    """They divide the numbers of a large step anywhere, also within a row."""
    for rows, width in ((1001, 100), (501, 176)):
        x = normal(rows, 2 * width)
        alone = torch.cat([alike.silu_mul(row) for row in torch.split(x, 1)])
        assert torch.equal(bits(alike.silu_mul(x)), bits(alone))


@settings(max_examples=20, deadline=None)
@given(
    picked=st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True),
    dtype=st.sampled_from(DTYPES),
    dynamic=st.booleans(),
    first=st.sampled_from([0, 3]),
)
def test_experts_of_any_company(
    picked: list[int], dtype: torch.dtype, dynamic: bool, first: int
) -> None:
    """Others' choices too: of ranks that hold the experts before `first`."""
    gate_up, down = (
        alike.pack(quantised(6, *shape, kind=FP8, dynamic=dynamic, dtype=dtype))
        for shape in ((2 * 24, 40), (40, 24))
    )
    x, weights = normal(12, 40).to(dtype), normal(12, 3, seed=5).abs()
    generator = torch.Generator().manual_seed(6)
    chosen = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(12)])
    chosen = chosen.to(torch.int32) - first

    def run(rows: list[int]) -> dict[str, Tensor]:
        return {"y": alike.experts(x[rows], gate_up, down, weights[rows], chosen[rows])}

    alone = {"y": torch.cat([run([row])["y"] for row in picked])}
    assert same_bits(run(picked), alone)


def test_which_backends_promise_it() -> None:
    assert ops.batch_invariant(ROWS_ALIKE) is ROWS_ALIKE
    for backend in (cpu, reference):
        found = ops.promising(as_ops(backend))
        assert found.name == backend.name and found is not backend


def test_a_backend_that_does_not_promise_it_is_refused() -> None:
    class Other:
        name = "other"

    assert ops.batch_invariant(Other()) is None  # type: ignore[arg-type]  # the name is enough
    with pytest.raises(UsageError, match="'other' does not promise .* use one that does, .* cpu"):
        ops.promising(Other())  # type: ignore[arg-type]  # the name is enough


def as_ops(backend: ModuleType) -> Any:
    return backend
