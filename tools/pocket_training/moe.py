"""The mixture of experts with gradients, and the balance of its router."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_portable.config import ModelConfig
from tools.pocket_training.layers import MLP, init, silu_mul

BIAS_OFFSET = 10.0
"""Where e_score_correction_bias starts. An offset changes no choice, but the published models have
one, and code that rounds the bias to BF16 loses its spread beside it: so has this model."""


class Take(torch.autograd.Function):
    """Rows of x by number; the number after the last gives zeros.

    back says, for each row of x, where it went: so the gradient is a `Take` too, where autograd's
    own would be a slow scatter.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows_M: Tensor, back_N: Tensor) -> Tensor:
        ctx.save_for_backward(back_N)
        return F.pad(x_ND, (0, 0, 0, 1)).index_select(0, rows_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back_N,) = ctx.saved_tensors
        return F.pad(gradients[0], (0, 0, 0, 1)).index_select(0, back_N), None, None


def take(x_ND: Tensor, rows_M: Tensor, back_N: Tensor) -> Tensor:
    taken: Tensor = Take.apply(x_ND, rows_M, back_N)  # type: ignore[no-untyped-call]
    return taken


class Gate(nn.Module):
    """The router. `load_E` counts how often each expert was chosen since `balance`."""

    e_score_correction_bias: Tensor
    load_E: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        count = config.n_routed_experts
        self.weight = init(count, config.hidden_size)
        self.register_buffer("e_score_correction_bias", torch.full((count,), BIAS_OFFSET))
        self.register_buffer("load_E", torch.zeros(count), persistent=False)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(weights_TK, experts_TK), in float32 whatever the rest computes in."""
        scores = F.linear(x_TD.float(), self.weight).sigmoid()
        choice = scores.detach() + self.e_score_correction_bias
        experts_TK = choice.topk(self.config.num_experts_per_tok, dim=-1).indices
        if self.training:
            self.load_E += experts_TK.flatten().bincount(minlength=len(self.load_E))
        weights = scores.gather(1, experts_TK)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.config.routed_scaling_factor, experts_TK

    @torch.no_grad()
    def balance(self, rate: float) -> float:
        """Raise the bias of experts with little load and lower that of the others.

        The auxiliary-loss-free balancing of DeepSeek-V3 (arXiv:2408.15664). Returns the largest
        load over the mean.
        """
        mean = self.load_E.mean()
        self.e_score_correction_bias += rate * (mean - self.load_E).sign()
        worst = float(self.load_E.max() / mean)
        self.load_E.zero_()
        return worst


class Experts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, d, f = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = init(count, 2 * f, d)
        self.down_proj = init(count, d, f, scale=0.25)

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """Every expert computes the tokens that chose it, in one batched product for all."""
        count, (tokens, k) = len(self.down_proj), experts_TK.shape
        slots_N, choices_M = _places(experts_TK.flatten(), count)
        x_ND = x_TD.unsqueeze(1).expand(tokens, k, -1).flatten(0, 1)
        x_EMD = take(x_ND, choices_M, slots_N).view(count, -1, x_TD.shape[-1])
        hidden = silu_mul(x_EMD.bmm(self.gate_up_proj.to(x_TD.dtype).mT))
        y_EMD = hidden.bmm(self.down_proj.to(x_TD.dtype).mT)
        y_TKD = take(y_EMD.flatten(0, 1), slots_N, choices_M).view(tokens, k, -1)
        out: Tensor = (y_TKD * weights_TK.to(y_TKD.dtype).unsqueeze(-1)).sum(1)
        return out


def _places(chosen_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(the slot of each choice, the choice in each slot), with as many slots for every expert.

    Slot e * capacity + i holds the i-th choice of expert e; an empty one holds number N.
    """
    order = chosen_N.argsort(stable=True)
    loads = chosen_N.bincount(minlength=count)
    capacity = int(loads.max())
    numbers = torch.arange(len(order))
    shift = torch.arange(count) * capacity - (loads.cumsum(0) - loads)
    slots = torch.empty_like(order).scatter_(0, order, numbers + shift[chosen_N[order]])
    choices = torch.full((count * capacity,), len(order)).scatter_(0, slots, numbers)
    return slots, choices


class MoE(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        shared = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = MLP(config.hidden_size, shared)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_TD = x_BTD.flatten(0, 1)
        out: Tensor = self.experts(x_TD, *self.gate(x_TD)) + self.shared_experts(x_TD)
        return out.view_as(x_BTD)
