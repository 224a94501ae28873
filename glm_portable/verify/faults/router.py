"""Faults of the router: precision, choice, weights."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from glm_portable.backends.reference import choose
from glm_portable.config import ModelConfig
from glm_portable.verify.call import routing_attributes
from glm_portable.verify.faults.fault import OPS, Fault, Op

Routed = tuple[Tensor, Tensor]


def bias_in_bf16(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    return honest(x_TD, gate_ED, bias_E.bfloat16().to(bias_E.dtype), cfg)


def product_in_bf16(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    """Gate and product are BF16; sigmoid and choice are not."""
    logits = x_TD.bfloat16() @ gate_ED.bfloat16().T
    return choose(logits.to(gate_ED.dtype), bias_E, cfg)


def choice_in_bf16(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    """Scores + bias are compared in BF16, where many are equal."""
    scores = _scores(x_TD, gate_ED)
    choice = (scores + bias_E).bfloat16().to(scores.dtype)
    return _weighted(scores, _largest(choice, cfg), cfg)


def bias_ignored(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    return honest(x_TD, gate_ED, torch.zeros_like(bias_E), cfg)


def bias_shifted(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    """Each expert has its neighbour's bias."""
    return honest(x_TD, gate_ED, bias_E.roll(1), cfg)


def biased_weights(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    """What experts are chosen by is what they are weighted by."""
    _, experts = honest(x_TD, gate_ED, bias_E, cfg)
    return _weighted(_scores(x_TD, gate_ED) + bias_E, experts.long(), cfg)


def weights_by_subtraction(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    """The score is won back as (score + bias) - bias, of which little is left."""
    _, experts = honest(x_TD, gate_ED, bias_E, cfg)
    return _weighted((_scores(x_TD, gate_ED) + bias_E) - bias_E, experts.long(), cfg)


def softmax(honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig) -> Any:
    scores = (x_TD.to(gate_ED.dtype) @ gate_ED.T).softmax(-1)
    return _weighted(scores, _largest(scores + bias_E, cfg), cfg)


def factor_twice(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    weights, experts = honest(x, gate, bias, cfg)
    return weights * cfg.routed_scaling_factor, experts


def factor_never(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    return honest(x, gate, bias, other(cfg, routed_scaling_factor=1.0))


def factor_only_unnormalised(
    honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig
) -> Any:
    """The factor is applied first, and divided away again."""
    factor = 1.0 if cfg.norm_topk_prob else cfg.routed_scaling_factor
    return honest(x, gate, bias, other(cfg, routed_scaling_factor=factor))


def not_normalised(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    return honest(x, gate, bias, other(cfg, norm_topk_prob=False))


def always_normalised(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    return honest(x, gate, bias, other(cfg, norm_topk_prob=True))


def normalised_over_all(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    """Weights are divided by the sum of all scores, not of the chosen."""
    _, experts = honest(x_TD, gate_ED, bias_E, cfg)
    scores = _scores(x_TD, gate_ED)
    weights = scores.gather(1, experts.long()) / scores.sum(-1, keepdim=True)
    return weights * cfg.routed_scaling_factor, experts


def zero_sum_divided(
    honest: Op, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> Any:
    """Nothing is added to the sum of the weights, and 0 / 0 is NaN."""
    weights, experts = honest(x_TD, gate_ED, bias_E, cfg)
    if cfg.norm_topk_prob:
        empty = weights.sum(-1, keepdim=True) == 0
        weights = torch.where(empty, torch.nan, weights)
    return weights, experts


def ties_highest_first(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    """Of equal scores the higher expert wins."""
    weights, experts = honest(x, gate.flip(0), bias.flip(0), cfg)
    return weights, len(bias) - 1 - experts


def last_never_chosen(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    bias = bias.clone()
    bias[-1] = -torch.inf
    return honest(x, gate, bias, cfg)


def one_choice_less(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    """The last choice has no weight, and is left out of the sum."""
    weights, experts = honest(x, gate, bias, cfg)
    kept = weights.clone()
    kept[:, -1] = 0
    if cfg.norm_topk_prob:
        kept *= weights.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    return kept, experts


def groups_ignored(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    return honest(x, gate, bias, other(cfg, n_group=1, topk_group=1))


def groups_by(
    rank: Callable[[Tensor], Tensor],
    honest: Op,
    x_TD: Tensor,
    gate_ED: Tensor,
    bias_E: Tensor,
    cfg: ModelConfig,
) -> Any:
    """Groups are ranked by something else than the sum of their best two."""
    if cfg.n_group == 1:
        return honest(x_TD, gate_ED, bias_E, cfg)
    scores = _scores(x_TD, gate_ED)
    groups = (scores + bias_E).view(len(scores), cfg.n_group, -1)
    kept = rank(groups).topk(cfg.topk_group, dim=-1).indices
    hidden = torch.ones(groups.shape[:2], dtype=torch.bool, device=x_TD.device)
    hidden.scatter_(1, kept, False)
    choice = groups.masked_fill(hidden.unsqueeze(-1), -torch.inf).flatten(1)
    return _weighted(scores, _largest(choice, cfg), cfg)


def best_of(groups: Tensor) -> Tensor:
    return groups.amax(-1)


def sum_of(groups: Tensor) -> Tensor:
    return groups.sum(-1)


def weights_shifted(honest: Op, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
    """Weights and experts are in different orders."""
    weights, experts = honest(x, gate, bias, cfg)
    return weights.roll(1, -1), experts


def other(cfg: ModelConfig, **changes: Any) -> Any:
    """The same settings of a router but for these."""
    return SimpleNamespace(**routing_attributes(cfg) | changes)


def _scores(x_TD: Tensor, gate_ED: Tensor) -> Tensor:
    return (x_TD.to(gate_ED.dtype) @ gate_ED.T).sigmoid()


def _largest(choice_TE: Tensor, cfg: ModelConfig) -> Tensor:
    order = choice_TE.sort(dim=-1, descending=True, stable=True).indices
    return order[:, : cfg.num_experts_per_tok]


def _weighted(scores_TE: Tensor, experts_TK: Tensor, cfg: ModelConfig) -> Routed:
    weights = scores_TE.gather(1, experts_TK)
    if cfg.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * cfg.routed_scaling_factor, experts_TK.to(torch.int32)


ONE_GROUP = "the pocket model has one group, as the real ones"
NORMALISED = "the pocket model's weights are normalised, as the real ones'"


def _fault(name: str, body: Callable[..., Any], stands_for: str, why: str = "") -> Fault:
    if why:
        return Fault(name, "route", stands_for, OPS, why, {"route": body})
    return Fault(name, "route", stands_for, bodies={"route": body})


ROUTER = [
    _fault("router-bias-in-bf16", bias_in_bf16, "bias near 7 has 8 values left "
           "(sglang PR#37133)"),
    _fault("router-product-in-bf16", product_in_bf16, "gate not in float32 "
           "(vllm-ascend PR#9617)", "no choice of the pocket model is so near"),
    _fault("router-choice-in-bf16", choice_in_bf16, "top-k operator that takes BF16 only"),
    _fault("router-bias-ignored", bias_ignored, "bias lost by a conversion (msmodelslim 26.1.0)"),
    _fault("router-bias-shifted", bias_shifted, "bias pointer off by one"),
    _fault("router-weights-biased", biased_weights, "bias enters the weights"),
    _fault("router-weights-by-subtraction", weights_by_subtraction,
           "score recovered from score + bias (vllm#47367)",
           "the pocket model's scores are not small against its bias"),
    _fault("router-softmax", softmax, "wrong routing type (exllamav3#68)"),
    _fault("router-factor-twice", factor_twice, "in the router and in the model (vllm#24132)"),
    _fault("router-factor-never", factor_never, "routed_scaling_factor not read"),
    _fault("router-factor-divided-away", factor_only_unnormalised,
           "applied before normalising (sglang PR#31449)"),
    _fault("router-not-normalised", not_normalised, "norm_topk_prob not read"),
    _fault("router-always-normalised", always_normalised, "norm_topk_prob taken for true",
           NORMALISED),
    _fault("router-normalised-over-all", normalised_over_all, "sum over all experts"),
    _fault("router-zero-sum-divided", zero_sum_divided,
           "NaN in the weights' sum (ik_llama.cpp#1045)", "no token's scores are all 0"),
    _fault("router-ties-highest-first", ties_highest_first, "unstable or reversed sort",
           "no scores of the pocket model are equal"),
    _fault("router-last-never-chosen", last_never_chosen, "loop over E - 1 experts"),
    _fault("router-one-choice-less", one_choice_less, "K - 1 experts"),
    _fault("router-groups-ignored", groups_ignored, "n_group not read", ONE_GROUP),
    _fault("router-groups-by-best", partial(groups_by, best_of),
           "group score of DeepSeek-V2 (vllm-ascend PR#2958)", ONE_GROUP),
    _fault("router-groups-by-sum", partial(groups_by, sum_of), "group score over all members",
           ONE_GROUP),
    _fault("router-weights-shifted", weights_shifted, "weights and experts sorted differently"),
]  # fmt: skip
