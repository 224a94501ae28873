"""The rule that judges a backend, on errors whose size is known."""

import pytest
import torch
from torch import Tensor

from glm_portable.verify.metrics import distance, faults

EXACT = torch.randn(512, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def off(relative: float, seed: int = 1) -> Tensor:
    """EXACT plus noise of this relative size."""
    noise = torch.randn(EXACT.shape, generator=torch.Generator().manual_seed(seed)).double()
    return EXACT + noise * relative


def one_bad_row(x: Tensor) -> Tensor:
    """Three tokens of 512 lose a sixteenth of their result."""
    x = x.clone()
    x[7] *= 15 / 16
    return x


PLAIN = off(0.003)


def test_distance_of_known_errors() -> None:
    assert distance(EXACT, EXACT).nmse == 0
    half = distance(EXACT / 2, EXACT)
    assert half.nmse == pytest.approx(0.25) and half.slope == pytest.approx(0.5)
    spike = EXACT.clone()
    spike[0, 0] += 3
    assert distance(spike, EXACT).tail == pytest.approx(3 / EXACT.square().mean().sqrt().item())


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.5, 0.99, 1.01, 2.0])
def test_a_scaled_result_fails(factor: float) -> None:
    assert faults(PLAIN * factor, PLAIN, EXACT)


def test_the_slope_sees_a_scale_that_hides_in_the_noise() -> None:
    coarse = off(0.1)
    assert [f for f in faults(off(0.1, 2) * 1.03, coarse, EXACT) if "slope" in f]
    assert faults(off(0.1, 2), coarse, EXACT) == []


def test_the_tail_sees_one_bad_row_that_hides_in_the_mean() -> None:
    assert [f for f in faults(one_bad_row(off(0.003, 2)), PLAIN, EXACT) if "largest" in f]


def test_equal_and_better_precision_pass() -> None:
    assert faults(off(0.003, 2), PLAIN, EXACT) == []
    assert faults(EXACT, PLAIN, EXACT) == []


def test_three_times_the_error_fails() -> None:
    assert [f for f in faults(off(0.009), PLAIN, EXACT) if f.startswith("error")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_must_be_where_they_belong(value: float) -> None:
    exact, broken = EXACT.clone(), PLAIN.clone()
    broken[3, 3] = value
    assert faults(broken, PLAIN, exact)
    exact[3, 3] = value
    assert faults(broken, broken, exact) == []
    assert faults(PLAIN, broken, exact)
    broken[3, 3] = float("inf") if value < 0 else float("-inf")
    assert faults(broken, PLAIN, exact)


def test_a_useless_yardstick_is_a_finding() -> None:
    assert [f for f in faults(off(0.5), off(0.5, 2), EXACT) if "nothing to compare" in f]
    assert faults(torch.zeros(4), torch.zeros(4), torch.zeros(4)) == []
    assert faults(torch.full((4,), 1e-3), torch.zeros(4), torch.zeros(4))
