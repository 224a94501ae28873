"""The router."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends.reference import choose
from glm_portable.config import ModelConfig

SIGMOID = 1
BEST_TWO = 1
SMALLEST_GROUP = 3


def route(
    npu: Any, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
) -> tuple[Tensor, Tensor]:
    """(weights_TK float32, experts_TK int32).

    Logits and bias are float32: the operator wants them alike, and a BF16 bias re-routes tokens.
    The operator always divides sigmoid scores by their sum, and multiplies by the factor after
    that; unnormalised weights, and groups too small for it, are computed in plain PyTorch.
    """
    logits = F.linear(x_TD.to(torch.float32), gate_ED.to(torch.float32))
    bias = bias_E.to(torch.float32)
    if not cfg.norm_topk_prob or len(bias) // cfg.n_group < SMALLEST_GROUP:
        return choose(logits, bias, cfg)
    weights, experts, _ = npu.npu_moe_gating_top_k(
        logits,
        cfg.num_experts_per_tok,
        bias=bias,
        k_group=cfg.topk_group,
        group_count=cfg.n_group,
        group_select_mode=BEST_TWO,
        renorm=0,
        norm_type=SIGMOID,
        routed_scaling_factor=cfg.routed_scaling_factor,
        eps=1e-20,
    )
    return weights, experts
