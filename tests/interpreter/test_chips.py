"""The backend over interpreted kernels, by the name of a chip."""

import pytest
import torch

from glm_portable.errors import UsageError
from glm_portable.verify.cases import named
from glm_portable.verify.results import Status
from glm_portable.verify.suite.ops import check
from glm_portable.virtual import INTERPRETED, banner, connect


@pytest.mark.parametrize("chip", INTERPRETED)
def test_an_op_passes_and_its_kernel_is_seen(chip: str) -> None:
    (found,) = check(connect("auto", chip), [named("silu_mul", "odd width")], again=False)
    assert found.status is Status.PASS and found.kernels == {"silu_mul": 1}
    assert "INTERPRETED" in banner(chip)


def test_the_chips_dialect_of_fp8_is_its_own() -> None:
    dialects = [connect("auto", chip).target.fp8 for chip in sorted(INTERPRETED)]  # type: ignore[attr-defined]  # GpuOps has it
    assert dialects == [torch.float8_e4m3fnuz, torch.float8_e4m3fn]


def test_another_backend_is_refused() -> None:
    with pytest.raises(UsageError, match="has no simulated interpreter-gfx942"):
        connect("cpu", "interpreter-gfx942")
