"""The rule that judges a backend, on errors whose size is known."""

import pytest
import torch
from torch import Tensor

from glm_portable.verify.metrics import distance, faults, flips, router_error

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


CHOICE = torch.tensor([[7.0, 7.0 + 1e-7, 6.5, 7.5]] * 2, dtype=torch.float64)
ERROR = torch.full_like(CHOICE, 1e-6)


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        ([[3, 1], [1, 3]], (0, 0)),
        ([[3, 0], [3, 1]], (1, 0)),  # 1e-7 apart, and 2e-6 off at most
        ([[3, 2], [3, 0]], (1, 1)),
        ([[2, 0], [3, 1]], (0, 2)),  # 3 and 1 displaced, by 0 and 2: 0.5 apart both
        ([[3, 3], [3, 1]], (0, 1)),
    ],
)
def test_a_flip_is_explained_by_the_errors_of_the_two_experts(
    experts: list[list[int]], expected: tuple[int, int]
) -> None:
    assert flips(torch.tensor(experts), CHOICE, ERROR) == expected


def test_of_equal_choices_the_lowest_is_the_exact_one() -> None:
    choice = torch.tensor([[1.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    none = torch.zeros_like(choice)
    assert flips(torch.tensor([[1, 2]]), choice, none) == (0, 0)
    assert flips(torch.tensor([[3, 2]]), choice, none) == (1, 0)


def router(bias: Tensor, kept: torch.dtype) -> tuple[int, int]:
    """The flips of a router that keeps its bias in that type and is in float32 otherwise."""
    g = torch.Generator().manual_seed(0)
    x, gate = torch.randn(256, 512, generator=g), torch.randn(160, 512, generator=g) / 512**0.5
    chosen = ((x @ gate.T).sigmoid() + bias.to(kept)).topk(8).indices
    choice = (x.double() @ gate.double().T).sigmoid() + bias.double()
    return flips(chosen, choice, router_error(x, gate, choice))


@pytest.mark.parametrize(("low", "high"), [(6.8, 7.1), (12.0, 35.0)])
def test_a_bias_in_bf16_gives_flips_that_nothing_explains(low: float, high: float) -> None:
    bias = low + (high - low) * torch.rand(160, generator=torch.Generator().manual_seed(1))
    assert router(bias, torch.float32)[1] == 0
    assert router(bias, torch.bfloat16)[1] > 0
