"""The router's choices against float64: every difference must be explained by the margin."""

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.config import ModelConfig
from glm_portable.kernels.route import route
from glm_portable.verify.cases.data import normal
from glm_portable.verify.metrics import flips, router_error
from tests.kernels.inputs import full
from tests.kernels.machine import Machine
from tests.random_checkpoint import small_config


def config(**changes: object) -> ModelConfig:
    return ModelConfig.from_dict(small_config(**changes))


def run(
    machine: Machine, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig
) -> tuple[Tensor, Tensor]:
    put = machine.put
    weights, experts = route(machine.launch, put(x), put(gate), put(bias), cfg)
    assert weights.dtype == torch.float32 and experts.dtype == torch.int32
    return weights.cpu(), experts.cpu()


def spread(experts: int, low: float, high: float) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return low + (high - low) * torch.rand(experts, generator=g)


@pytest.mark.parametrize(
    ("experts", "width", "tokens"),
    [
        (160, 544, 17),
        pytest.param(128, 192, 33, marks=full),
        pytest.param(160, 5120, 40, marks=full),
        pytest.param(128, 4096, 1, marks=full),
    ],
)
@pytest.mark.parametrize(("low", "high"), [(6.8, 7.1), (12.0, 35.0), (-0.1, 0.1)])
def test_no_unexplained_flips(
    machine: Machine, experts: int, width: int, tokens: int, low: float, high: float
) -> None:
    cfg = config(n_routed_experts=experts, num_experts_per_tok=8, routed_scaling_factor=2.5)
    x = normal(tokens, width, outliers=True).bfloat16()
    gate = normal(experts, width, seed=1) * width**-0.5
    bias = spread(experts, low, high)
    weights, chosen = run(machine, x, gate, bias, cfg)
    exact = reference.route(x.double(), gate.double(), bias.double(), cfg)
    choice = (x.double() @ gate.double().T).sigmoid() + bias.double()
    assert flips(chosen, choice, router_error(x, gate, choice))[1] == 0
    agreed = (chosen == exact[1]).all(1)  # in the same order
    assert agreed.float().mean() > 0.9
    assert torch.allclose(weights[agreed].double(), exact[0][agreed], rtol=1e-5)
    assert weights.sum(1).tolist() == pytest.approx([2.5] * tokens)


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (8, 2), (3, 2)])
def test_of_equal_scores_the_lowest_wins(machine: Machine, groups: int, kept: int) -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4, n_group=groups, topk_group=kept)
    x, gate, bias = torch.ones(2, 32).bfloat16(), torch.zeros(24, 32), torch.zeros(24)
    bias[[9, 23]] = 1.0
    got, expected = run(machine, x, gate, bias, cfg), reference.route(x, gate, bias, cfg)
    assert torch.equal(got[1], expected[1])
    assert torch.allclose(got[0], expected[0])


def test_of_160_equal_scores_the_first_eight_win(machine: Machine) -> None:
    cfg = config(n_routed_experts=160, num_experts_per_tok=8)
    x, gate, bias = torch.ones(3, 64).bfloat16(), torch.zeros(160, 64), torch.full((160,), 7.0)
    assert run(machine, x, gate, bias, cfg)[1].tolist() == [list(range(8))] * 3


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("groups", [1, pytest.param(8, marks=full)])
def test_weights_with_groups_and_without_normalisation(
    machine: Machine, groups: int, normalised: bool
) -> None:
    cfg = config(
        n_routed_experts=64, num_experts_per_tok=8, n_group=groups, topk_group=min(groups, 4),
        norm_topk_prob=normalised, routed_scaling_factor=2.5,
    )  # fmt: skip
    x, gate = normal(9, 96, seed=3).bfloat16(), normal(64, 96, seed=1) / 10
    bias = spread(64, 6.8, 7.1)
    weights, experts = run(machine, x, gate, bias, cfg)
    exact = reference.route(x.double(), gate.double(), bias.double(), cfg)
    assert torch.equal(experts, exact[1])
    assert torch.allclose(weights.double(), exact[0], rtol=1e-5)


def test_infinite_biases_and_scores_of_zero(machine: Machine) -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4)
    bias = torch.full((24,), -torch.inf)
    bias[[5, 20]] = torch.tensor([1.0, torch.inf])
    x, gate = torch.ones(1, 32), torch.full((24, 32), -1e3)
    weights, experts = run(machine, x, gate, bias, cfg)
    assert experts.tolist() == [[20, 5, 0, 1]]
    assert weights.tolist() == [[0.0] * 4]


def test_infinite_logits(machine: Machine) -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4)
    gate = torch.zeros(24, 32)
    gate[[3, 17], 0] = torch.tensor([3e38, -3e38])
    weights, experts = run(machine, torch.full((1, 32), 1e3), gate, torch.zeros(24), cfg)
    assert experts.tolist() == [[3, 0, 1, 2]]
    assert weights[0].tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_nan_chooses_experts_that_exist(machine: Machine) -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4)
    x, gate = torch.full((1, 32), torch.nan), torch.ones(24, 32)
    weights, experts = run(machine, x, gate, torch.zeros(24), cfg)
    assert experts.tolist() == [[0, 1, 2, 3]] and weights.isnan().all()


def test_one_nan_logit_is_nobodys_choice(machine: Machine) -> None:
    cfg = config(n_routed_experts=24, num_experts_per_tok=4)
    gate = torch.ones(24, 32) / 32
    gate[0, 5] = torch.nan
    weights, experts = run(machine, torch.ones(2, 32), gate, torch.zeros(24), cfg)
    assert experts.tolist() == [[1, 2, 3, 4]] * 2
    assert weights.flatten().tolist() == pytest.approx([0.25] * 8)


def test_a_token_is_routed_alike_alone_in_a_crowd_and_again(machine: Machine) -> None:
    cfg = config(n_routed_experts=32, num_experts_per_tok=8)
    x, gate = normal(17, 1056).bfloat16(), normal(32, 1056, seed=1) / 32
    bias = 7 + normal(32, seed=2) / 32
    crowd, again = (run(machine, x, gate, bias, cfg) for _ in range(2))
    alone = run(machine, x[16:], gate, bias, cfg)
    for one, two, three in zip(crowd, again, alone, strict=True):
        assert torch.equal(one, two) and torch.equal(one[16:], three)
