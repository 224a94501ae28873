"""Kernels that take a row at a time: norm and gate."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import norm, silu
from glm_portable.verify.cases.data import normal
from glm_portable.verify.metrics import faults
from tests.kernels.inputs import BF16, full
from tests.kernels.machine import Machine


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("tokens", "width"), [(9, 192), (1, 176), pytest.param(17, 5120, marks=full)]
)
def test_norm(
    machine: Machine, tokens: int, width: int, dtype: torch.dtype, with_residual: bool
) -> None:
    x, w = normal(tokens, width, outliers=True), (1 + normal(width, seed=1) / 8).to(BF16)
    x[0] *= 2.0**-12  # eps weighs there
    r = normal(tokens, width, seed=2) if with_residual else None

    def inputs(kind: torch.dtype) -> tuple[Tensor, Tensor, float, Tensor | None]:
        return x.to(kind), w.to(kind), 1e-5, None if r is None else r.to(kind)

    on_machine = (machine.put(t) if isinstance(t, Tensor) else t for t in inputs(dtype))
    got, total = norm.rms_norm(machine.launch, *on_machine)  # type: ignore[arg-type]  # a generator
    plain, exact = (reference.rms_norm(*inputs(kind)) for kind in (dtype, torch.float64))
    assert torch.equal(total.cpu(), plain[1])
    assert faults(got.cpu(), plain[0], exact[0]) == []
    # One unit in the last place, where the mean was summed in another order.
    step = 2**-7 if dtype == BF16 else 2**-21
    assert torch.allclose(got.cpu().double(), plain[0].double(), rtol=step, atol=0)


def test_norm_reads_strided_rows_in_place(machine: Machine) -> None:
    wide = machine.put(normal(5, 512).to(BF16))
    w = machine.put((1 + normal(176, seed=1) / 8).to(BF16))
    x, r = wide[:, 16:192], wide[:, 200:376]
    got = norm.rms_norm(machine.launch, x, w, 1e-5, r)
    expected = norm.rms_norm(machine.launch, x.contiguous(), w, 1e-5, r.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [192, 176, silu.TILE + 40])
def test_gate(machine: Machine, width: int, dtype: torch.dtype) -> None:
    x = (normal(3, 2 * width) * 4).to(dtype)
    x[0, :6] = torch.tensor([-200.0, 200.0, 88.0, -88.0, -104.0, 0.0])  # exp over- and underflows
    got = silu.silu_mul(machine.launch, machine.put(x)).cpu()
    assert faults(got, reference.silu_mul(x), reference.silu_mul(x.double())) == []
