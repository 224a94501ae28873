"""Sorting tokens by expert and back: npu_moe_init_routing_v2, npu_moe_token_unpermute."""

import torch
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import require, values_needed
from glm_portable.virtual.npu.semantics.quantised import per_token
from glm_portable.virtual.npu.semantics.rows import FLOATS
from glm_portable.virtual.npu.semantics.undefined import undefined

INIT, UNPERMUTE = "npu_moe_init_routing_v2", "npu_moe_token_unpermute"
PLAIN, DYNAMIC = -1, 1
COUNTS = 1
MOST_CHOICES = 512


def init_routing(
    chip: Chip,
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = PLAIN,
    active_expert_range: tuple[int, ...] | list[int] = (),
    row_idx_type: int = 0,
    x_dtype: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(rows sorted by expert, where each choice went, tokens an expert, scale a row).

    Choices of experts outside of the range have row -1, and the rows they would fill are undefined.
    """
    tokens, k = expert_idx.shape
    ids = expert_idx.dtype
    require(ids == torch.int32, INIT, "expert_idx's dtype", ids, "it must be int32")
    require(x.dtype in FLOATS, INIT, "x's dtype", x.dtype, f"it must be one of {FLOATS}")
    require(x.is_contiguous(), INIT, "x's strides", x.stride(), "it must be contiguous")
    require(
        expert_tokens_num_type == COUNTS,
        INIT,
        "expert_tokens_num_type",
        expert_tokens_num_type,
        "1 (counts) is what is simulated",
    )
    require(expert_tokens_num_flag, INIT, "expert_tokens_num_flag", False, "it must be True")
    require(quant_mode in (PLAIN, DYNAMIC), INIT, "quant_mode", quant_mode, "it must be -1 or 1")
    require(drop_pad_mode == 0, INIT, "drop_pad_mode", drop_pad_mode, "only 0 is supported")
    require(row_idx_type == 0, INIT, "row_idx_type", row_idx_type, "0 (gather) is simulated")
    require(scale is None and offset is None, INIT, "scale", "given", "it is not simulated")
    require(
        active_num in (-1, 0, tokens * k),
        INIT,
        "active_num",
        active_num,
        f"there are {tokens * k} choices",
    )
    begin, end = active_expert_range or (0, expert_num)
    require(
        0 <= begin < end <= expert_num,
        INIT,
        "active_expert_range",
        [begin, end],
        f"there are {expert_num} experts",
    )
    values_needed(x, expert_idx)
    flat = expert_idx.flatten().long()
    known = bool(((flat >= 0) & (flat < expert_num)).all())
    require(known, INIT, "expert_idx", flat.tolist(), f"there are {expert_num} experts")
    ours = (flat >= begin) & (flat < end)
    order = torch.where(ours, flat, expert_num).sort(stable=True).indices[: int(ours.sum())]
    row_idx = torch.full((tokens * k,), -1, dtype=torch.int32)
    row_idx[order] = torch.arange(len(order), dtype=torch.int32)
    counts = torch.bincount(flat[ours] - begin, minlength=end - begin)
    picked = x[order // k]
    rows, scales = per_token(picked) if quant_mode == DYNAMIC else (picked, None)
    sorted_x = undefined(tokens * k, x.shape[1], dtype=rows.dtype)
    sorted_x[: len(order)] = rows
    row_scales = undefined(tokens * k, dtype=torch.float32)
    if scales is not None:
        row_scales[: len(order)] = scales
    return sorted_x, row_idx, counts, row_scales


def token_unpermute(
    chip: Chip,
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: list[int] | None = None,
) -> Tensor:
    """Row t is the sum over k of probs[t, k] * permuted_tokens[sorted_indices[t * K + k]]."""
    op = UNPERMUTE
    require(not padded_mode, op, "padded_mode", padded_mode, "only False is supported")
    require(
        sorted_indices.dtype == torch.int32,
        op,
        "sorted_indices's dtype",
        sorted_indices.dtype,
        "it must be int32",
    )
    k = 1
    if probs is not None:
        k = probs.shape[1]
        require(
            probs.dtype in FLOATS, op, "probs's dtype", probs.dtype, f"it must be one of {FLOATS}"
        )
        require(k <= MOST_CHOICES, op, "the choices of a token", k, f"{MOST_CHOICES} is the most")
        require(
            probs.numel() == len(sorted_indices),
            op,
            "probs's shape",
            tuple(probs.shape),
            f"there are {len(sorted_indices)} indices",
        )
    values_needed(permuted_tokens)
    count = len(permuted_tokens)
    inside = bool(((sorted_indices >= 0) & (sorted_indices < count)).all())
    require(
        inside,
        op,
        "sorted_indices",
        sorted_indices.tolist(),
        f"an index must be one of the {count} rows",
    )
    once = len(set(sorted_indices.tolist())) == len(sorted_indices)
    require(once, op, "sorted_indices", sorted_indices.tolist(), "no index may come twice")
    parts = torch.unflatten(permuted_tokens[sorted_indices.long()].float(), 0, (-1, k))
    if probs is not None:
        parts = parts * probs.float().unsqueeze(-1)
    return parts.sum(1).to(permuted_tokens.dtype)
