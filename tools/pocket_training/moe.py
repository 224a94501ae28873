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


class Permute(torch.autograd.Function):
    """Reorders rows. A permutation's gradient is its inverse; autograd's own is a slow scatter."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        return x_ND.index_select(0, order_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse_N), None, None


def permute(x_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
    permuted: Tensor = Permute.apply(x_ND, order_N, inverse_N)  # type: ignore[no-untyped-call]
    return permuted


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
        with torch.autocast("cpu", enabled=False):
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
        """Tokens sorted by expert, one product an expert, and back to the order of the tokens."""
        chosen = experts_TK.flatten()
        order = chosen.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        counts = chosen.bincount(minlength=len(self.down_proj)).tolist()
        rows = permute(x_TD.repeat_interleave(experts_TK.shape[1], 0), order, inverse)
        experts = zip(
            torch.split(rows, counts),
            self.gate_up_proj.unbind(),
            self.down_proj.unbind(),
            strict=True,
        )
        y = torch.cat([F.linear(silu_mul(F.linear(x, up)), down) for x, up, down in experts])
        y_TKD = permute(y, inverse, order).view(*experts_TK.shape, -1)
        out: Tensor = (y_TKD * weights_TK.to(y.dtype).unsqueeze(-1)).sum(1)
        return out


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
