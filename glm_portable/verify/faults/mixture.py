"""Faults of the routed experts and of the gate between their products."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.ops import Weight
from glm_portable.verify.faults.attention import cut
from glm_portable.verify.faults.fault import OPS, Fault, Op

CAPACITY = 16
"""Rows that one expert takes where a fault drops the rest."""


def last_expert_dropped(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """Experts are visited up to the last but one."""
    return honest(x, gate_up, down, weights * (experts != len(gate_up.data) - 1), experts)


def last_choice_dropped(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    kept = torch.arange(weights.shape[1], device=weights.device) < weights.shape[1] - 1
    return honest(x, gate_up, down, weights * kept, experts)


def over_capacity_dropped(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """Rows beyond an expert's buffer are lost."""
    same = experts.flatten().unsqueeze(1) == experts.flatten()
    before = same.tril(-1).sum(1).view_as(experts)
    return honest(x, gate_up, down, weights * (before < CAPACITY), experts)


def weights_shifted(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """A token's weights go to its experts in another order."""
    return honest(x, gate_up, down, weights.roll(1, -1), experts)


def weights_in_bf16(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    return honest(x, gate_up, down, weights.bfloat16().to(weights.dtype), experts)


def weights_on_the_input(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """The weight multiplies what goes into an expert, not what comes out."""
    total = torch.zeros_like(x, dtype=weights.dtype)
    for k in range(weights.shape[1]):
        one = weights[:, k : k + 1]
        inputs = (x * one).to(x.dtype)
        total += honest(inputs, gate_up, down, torch.ones_like(one), experts[:, k : k + 1])
    return total.to(x.dtype)


def foreign_experts_computed(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """A choice of another rank's expert is clamped into this one's."""
    return honest(x, gate_up, down, weights, experts.clamp(0, len(gate_up.data) - 1))


def foreign_experts_wrapped(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """-1, by which kernels mark a foreign choice, counts from the end."""
    last = len(gate_up.data) - 1
    return honest(x, gate_up, down, weights, torch.where(experts == -1, last, experts))


def ids_in_int8(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """Experts from 128 on become negative, and so another rank's."""
    return honest(x, gate_up, down, weights, experts.to(torch.int8).to(torch.int32))


def normalised_again(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    return honest(x, gate_up, down, weights / weights.sum(-1, keepdim=True), experts)


def sum_not_weighted(
    honest: Op, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, experts: Tensor
) -> Any:
    """Every choice has the same weight."""
    mean = weights.mean(-1, keepdim=True).expand(weights.shape).contiguous()
    return honest(x, gate_up, down, mean, experts)


def gate_up_exchanged(honest: Op, x_T2F: Tensor, feeds: Weight | None = None) -> Any:
    gate, up = x_T2F.chunk(2, dim=-1)
    return honest(torch.cat([up, gate], dim=-1), feeds)


def interleaved(honest: Op, x_T2F: Tensor, feeds: Weight | None = None) -> Any:
    """Gate and up are taken from alternate columns."""
    return honest(torch.cat([x_T2F[..., ::2], x_T2F[..., 1::2]], dim=-1), feeds)


def clamped(honest: Op, x_T2F: Tensor, feeds: Weight | None = None) -> Any:
    """The clamp at 7 that some fused operators have by default."""
    gate, up = x_T2F.chunk(2, dim=-1)
    return honest(torch.cat([gate.clamp(max=7), up.clamp(-7, 7)], dim=-1), feeds)


def quick_gelu(honest: Op, x_T2F: Tensor, feeds: Weight | None = None) -> Any:
    """x * sigmoid(1.702 x), the other default of such operators."""
    gate, up = x_T2F.chunk(2, dim=-1)
    return gate * torch.sigmoid(1.702 * gate) * up


def hard_silu(honest: Op, x_T2F: Tensor, feeds: Weight | None = None) -> Any:
    """A straight line in place of the sigmoid."""
    gate, up = x_T2F.chunk(2, dim=-1)
    return F.hardswish(gate) * up


def truncated(honest: Op, x_T2F: Tensor, feeds: Weight | None = None) -> Any:
    """The product is cut to BF16, not rounded."""
    if x_T2F.dtype != torch.bfloat16:
        return honest(x_T2F, feeds)
    return cut(honest(x_T2F.float()))


def gate_alone(honest: Op, x_T2F: Tensor, feeds: Weight | None = None) -> Any:
    gate, _ = x_T2F.chunk(2, dim=-1)
    return honest(torch.cat([gate, torch.ones_like(gate)], dim=-1), feeds)


ONE_RANK = "the pocket model is on one rank"

MIXTURE = [
    Fault("last-expert-dropped", "experts", "loop over E - 1 experts",
          bodies={"experts": last_expert_dropped}),
    Fault("last-choice-dropped", "experts", "seven of eight experts",
          bodies={"experts": last_choice_dropped}),
    Fault("over-capacity-dropped", "experts", "a bucket of tokens too small (aiter#2059)",
          bodies={"experts": over_capacity_dropped}),
    Fault("expert-weights-shifted", "experts", "weights and experts sorted differently",
          bodies={"experts": weights_shifted}),
    Fault("expert-weights-in-bf16", "experts", "routing weights cast to the activations' type "
          "(vllm#33543)", OPS, "BF16's own rounding is as large", {"experts": weights_in_bf16}),
    Fault("weights-on-the-input", "experts", "apply_router_weight_on_input",
          bodies={"experts": weights_on_the_input}),
    Fault("foreign-experts-computed", "experts", "expert ids clamped under expert parallelism "
          "(vllm-ascend#6710)", OPS, ONE_RANK, {"experts": foreign_experts_computed}),
    Fault("foreign-experts-wrapped", "experts", "row index -1 of foreign experts used as one",
          OPS, ONE_RANK, {"experts": foreign_experts_wrapped}),
    Fault("expert-ids-in-int8", "experts", "GLM-4.5 has 160 experts",
          OPS, "the pocket model has 16", {"experts": ids_in_int8}),
    Fault("expert-weights-normalised-again", "experts", "renormalised in the fused operator",
          bodies={"experts": normalised_again}),
    Fault("experts-not-weighted", "experts", "plain mean of the experts",
          bodies={"experts": sum_not_weighted}),
    Fault("silu-gate-up-exchanged", "silu_mul", "activate_left the other way",
          bodies={"silu_mul": gate_up_exchanged}),
    Fault("silu-interleaved", "silu_mul", "gate and up in alternate columns",
          bodies={"silu_mul": interleaved}),
    Fault("silu-clamped", "silu_mul", "clamp_limit = 7 by default (npu_dequant_swiglu_quant)",
          OPS, "the pocket model's gates stay small", {"silu_mul": clamped}),
    Fault("silu-quick-gelu", "silu_mul", "glu_alpha = 1.702 by default",
          bodies={"silu_mul": quick_gelu}),
    Fault("silu-hard", "silu_mul", "sigmoid approximated by a line",
          bodies={"silu_mul": hard_silu}),
    Fault("silu-truncated", "silu_mul", "conversion to BF16 that cuts",
          OPS, "a layer's own rounding is larger", {"silu_mul": truncated}),
    Fault("silu-without-up", "silu_mul", "only half of the input read",
          bodies={"silu_mul": gate_alone}),
]  # fmt: skip
