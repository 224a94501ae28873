"""The GPU backends, their kernels interpreted, against the reference in float64."""

import pytest
import torch

from glm_portable.backends import reference
from glm_portable.backends.rocm import virtual
from glm_portable.verify.metrics import faults
from glm_portable.virtual import interpreter
from tests.backends.cases import CASES, Case

BACKENDS = {arch: virtual(arch, interpreter.launch) for arch in ("gfx942", "gfx950")}


def verdict(case: Case, arch: str, dtype: torch.dtype) -> list[str]:
    exact = case.run(reference, torch.float64)
    return faults(case.run(BACKENDS[arch], dtype), case.run(reference, dtype), exact)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_errs_no_more_than_twice_as_much_as_plain_pytorch(case: Case) -> None:
    assert verdict(case, "gfx942", torch.bfloat16) == []
