"""The router's choices against float64: every difference must be explained by the margin."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.config import ModelConfig
from glm_portable.kernels.route import route
from glm_portable.virtual.interpreter import launch
from tests.backends.cases import normal
from tests.random_checkpoint import small_config


def config(**changes: object) -> ModelConfig:
    return ModelConfig.from_dict(small_config(**changes))


def unexplained(got: Tensor, exact: Tensor, choice_TE: Tensor) -> int:
    """Tokens with another set of experts, where float32 can tell the experts in question apart."""
    found = 0
    for mine, true, choice in zip(got.tolist(), exact.tolist(), choice_TE, strict=True):
        swapped = set(mine) ^ set(true)
        if swapped:
            values = choice[list(swapped)]
            bound = 4 * torch.finfo(torch.float32).eps * values.abs().max()
            found += bool(values.max() - values.min() > bound)
    return found


@pytest.mark.parametrize("experts", [160, 128])
@pytest.mark.parametrize("low, high", [(6.8, 7.1), (12.0, 35.0), (-0.1, 0.1)])
def test_no_unexplained_flips(experts: int, low: float, high: float) -> None:
    tokens, width = 33, 192
    cfg = config(n_routed_experts=experts, num_experts_per_tok=8, routed_scaling_factor=2.5)
    x = normal(tokens, width, outliers=True).bfloat16()
    gate = normal(experts, width, seed=1) * width**-0.5
    g = torch.Generator().manual_seed(2)
    bias = low + (high - low) * torch.rand(experts, generator=g)
    weights, chosen = route(launch, x, gate, bias, cfg)
    exact = reference.route(x.double(), gate.double(), bias.double(), cfg)
    choice = (x.double() @ gate.double().T).sigmoid() + bias.double()
    assert unexplained(chosen, exact[1], choice) == 0
    agreed = (chosen == exact[1]).all(1)
    assert agreed.float().mean() > 0.9
    assert torch.allclose(weights[agreed].double(), exact[0][agreed], rtol=1e-5)
    assert weights.sum(1).tolist() == pytest.approx([2.5] * tokens)


def test_a_flip_that_float32_could_have_avoided_is_counted() -> None:
    choice = torch.tensor([[7.0, 7.0 + 1e-7, 6.5]], dtype=torch.float64)
    assert unexplained(torch.tensor([[0]]), torch.tensor([[1]]), choice) == 0
    assert unexplained(torch.tensor([[2]]), torch.tensor([[1]]), choice) == 1


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (8, 2), (3, 2)])
def test_of_equal_scores_the_lowest_wins(groups: int, kept: int) -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4, n_group=groups, topk_group=kept)
    x, gate, bias = torch.ones(2, 32).bfloat16(), torch.zeros(24, 32), torch.zeros(24)
    bias[[9, 23]] = 1.0
    got, expected = (f(x, gate, bias, cfg) for f in (lambda *a: route(launch, *a), reference.route))
    assert torch.equal(got[1], expected[1])
    assert torch.allclose(got[0], expected[0])


def test_infinite_biases_and_scores_of_zero() -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4)
    bias = torch.full((24,), -torch.inf)
    bias[[5, 20]] = torch.tensor([1.0, torch.inf])
    x, gate = torch.ones(1, 32), torch.full((24, 32), -1e3)
    weights, experts = route(launch, x, gate, bias, cfg)
    assert experts.tolist() == [[20, 5, 0, 1]]
    assert weights.tolist() == [[0.0] * 4]


def test_nan_chooses_experts_that_exist() -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4)
    x, gate = torch.full((1, 32), torch.nan), torch.ones(24, 32)
    weights, experts = route(launch, x, gate, torch.zeros(24), cfg)
    assert experts.tolist() == [[0, 1, 2, 3]] and weights.isnan().all()


def test_a_token_is_routed_alike_alone_and_in_a_crowd() -> None:
    cfg = config(n_routed_experts=160, num_experts_per_tok=8)
    x, gate = normal(17, 1056).bfloat16(), normal(160, 1056, seed=1) / 32
    bias = 7 + normal(160, seed=2) / 32
    crowd = route(launch, x, gate, bias, cfg)
    alone = route(launch, x[16:], gate, bias, cfg)
    assert torch.equal(crowd[0][16:], alone[0]) and torch.equal(crowd[1][16:], alone[1])
