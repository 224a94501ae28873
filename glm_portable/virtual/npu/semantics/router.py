"""The router: npu_moe_gating_top_k."""

import torch
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import require, values_needed
from glm_portable.virtual.npu.semantics.rows import FLOATS

OP = "npu_moe_gating_top_k"
SOFTMAX, SIGMOID = 0, 1
MOST_EXPERTS = 2048


def gating_top_k(
    chip: Chip,
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, expert ids int32, the scores before the bias if out_flag).

    After sigmoid the chosen scores are divided by their sum + eps, always; the factor comes last.
    """
    require(x.dim() == 2, OP, "x's shape", tuple(x.shape), "it must have 2 dimensions")
    count = x.shape[1]
    require(x.dtype in FLOATS, OP, "x's dtype", x.dtype, f"it must be one of {FLOATS}")
    require(
        count <= MOST_EXPERTS, OP, "the number of experts", count, f"{MOST_EXPERTS} is the most"
    )
    if bias is not None:
        require(bias.dtype == x.dtype, OP, "bias's dtype", bias.dtype, f"x's is {x.dtype}")
        shape = tuple(bias.shape)
        require(shape == (count,), OP, "bias's shape", shape, f"x has {count} experts")
    require(renorm == 0, OP, "renorm", renorm, "only 0 is supported")
    require(norm_type in (SOFTMAX, SIGMOID), OP, "norm_type", norm_type, "it must be 0 or 1")
    require(input_ids is None and tid2eid is None, OP, "input_ids", "given", "it is not simulated")
    _check_groups(count, k, k_group, group_count)
    values_needed(x)
    wide = x.float()
    scores = wide.softmax(-1) if norm_type == SOFTMAX else wide.sigmoid()
    choice = scores if bias is None else scores + bias.float()
    if group_count > 1:
        choice = _in_best_groups(choice, k_group, group_count, group_select_mode)
    chosen = choice.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, chosen)
    if norm_type == SIGMOID:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    seen = scores if out_flag else torch.full_like(scores, float("nan"))
    return (weights * routed_scaling_factor).to(x.dtype), chosen.to(torch.int32), seen


def _check_groups(count: int, k: int, k_group: int, group_count: int) -> None:
    require(count % group_count == 0, OP, "group_count", group_count, f"it must divide {count}")
    size = count // group_count
    require(size > 2, OP, "group_count", group_count, f"a group of {size} experts is too small")
    require(0 < k_group <= group_count, OP, "k_group", k_group, f"there are {group_count} groups")
    require(0 < k <= size * k_group, OP, "k", k, f"{k_group} groups hold {size * k_group} experts")


def _in_best_groups(choice: Tensor, k_group: int, group_count: int, mode: int) -> Tensor:
    """-inf outside the best groups, judged by their largest (mode 0) or two largest scores (1)."""
    groups = torch.unflatten(choice, 1, (group_count, -1))
    judged = groups.amax(-1) if mode == 0 else groups.topk(2, -1).values.sum(-1)
    best = judged.sort(dim=-1, descending=True, stable=True).indices[:, :k_group]
    hidden = torch.ones_like(judged, dtype=torch.bool).scatter_(1, best, False)
    return groups.masked_fill(hidden.unsqueeze(-1), float("-inf")).flatten(1)
