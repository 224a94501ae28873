"""The routed mixture."""

from typing import Any

import torch
from torch import Tensor

from glm_portable.backends.ascend.linear import Packed, packed_of
from glm_portable.ops import Weight

COUNTS = 1
PLAIN, DYNAMIC = -1, 1
GATE_ALIGNMENT, WIDEST_GATE = 64, 10496
"""Widths that npu_dequant_swiglu_quant takes by group; a narrow slice of TP16 is none."""


def experts(
    npu: Any,
    x_TD: Tensor,
    gate_up_E2FD: Weight,
    down_EDF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
) -> Tensor:
    """(T, D); the sum over K with float32 weights.

    Choices of other ranks' experts are sorted behind all others, as if there were one more expert.
    No group owns their rows, so the products leave them undefined and they are set to 0. (The
    operator's own way, row -1, would need an index that the last operator does not allow.)
    """
    tokens, k = experts_TK.shape
    if tokens == 0:
        return torch.empty_like(x_TD)
    gate_up, down = packed_of(gate_up_E2FD), packed_of(down_EDF)
    count = gate_up.parts[0].shape[0]
    foreign = (experts_TK < 0) | (experts_TK >= count)
    rows, row_idx, all_counts, scales = npu.npu_moe_init_routing_v2(
        x_TD.contiguous(),
        experts_TK.masked_fill(foreign, count),
        active_num=tokens * k,
        expert_num=count + 1,
        expert_tokens_num_type=COUNTS,
        expert_tokens_num_flag=True,
        active_expert_range=[0, count + 1],
        quant_mode=PLAIN if gate_up.scale is None else DYNAMIC,
    )
    counts = all_counts[:count]
    if gate_up.scale is None:
        hidden, hidden_scales = npu.npu_swiglu(grouped(npu, rows, gate_up, counts)), None
    else:
        hidden, hidden_scales = _gate_int8(npu, rows, scales, gate_up, down, counts)
    parts = _down(npu, hidden, hidden_scales, down, counts)
    ours = torch.arange(tokens * k, device=parts.device) < counts.sum()
    parts = parts.masked_fill(~ours.unsqueeze(1), 0)
    y: Tensor = npu.npu_moe_token_unpermute(parts, row_idx, probs=weights_TK.to(torch.float32))
    return y


def grouped(npu: Any, rows: Tensor, w: Packed, counts: Tensor, **options: Any) -> Tensor:
    """rows of expert e @ w[e]."""
    (y,) = npu.npu_grouped_matmul(
        [rows],
        [w.parts[0]],
        group_list=counts,
        group_list_type=COUNTS,
        group_type=0,
        split_item=2,
        **options,
    )
    assert isinstance(y, Tensor)
    return y


def _gate_int8(
    npu: Any, rows: Tensor, scales: Tensor, gate_up: Packed, down: Packed, counts: Tensor
) -> tuple[Tensor, Tensor | None]:
    """(silu(gate) * up, its scales): codes if `down` takes codes, else BF16 and None."""
    half = gate_up.parts[0].shape[2] // 2
    fused = down.scale is not None and half % GATE_ALIGNMENT == 0 and half <= WIDEST_GATE
    if fused:
        sums = grouped(npu, rows, gate_up, counts, output_dtype=torch.int32)
        codes, hidden_scales = npu.npu_dequant_swiglu_quant(
            sums,
            weight_scale=gate_up.scale,
            activation_scale=scales.unsqueeze(-1),
            group_index=counts,
            activate_left=True,
            quant_mode=1,
        )
        return codes, hidden_scales
    both = grouped(
        npu,
        rows,
        gate_up,
        counts,
        scale=[gate_up.rounded],
        per_token_scale=[scales],
        output_dtype=torch.bfloat16,
    )
    hidden = npu.npu_swiglu(both)
    return hidden, None


def _down(npu: Any, hidden: Tensor, scales: Tensor | None, down: Packed, counts: Tensor) -> Tensor:
    if down.scale is None:
        return grouped(npu, hidden, down, counts)
    if scales is None:
        hidden, scales = npu.npu_dynamic_quant(hidden)
    return grouped(
        npu,
        hidden,
        down,
        counts,
        scale=[down.rounded],
        per_token_scale=[scales],
        output_dtype=torch.bfloat16,
    )
