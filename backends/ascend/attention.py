"""Heads, pages and attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step

MASK = 2048
CAUSAL = 3
HEAD_SIZE = 128
"""The head size of TND attention without a separate rope part; narrower heads are padded to it."""
ROTARY_STEP = 32
PAGE_STEP, LARGEST_PAGE = 16, 1024


def causal_mask(device: torch.device) -> Tensor:
    """The mask of sparse_mode 3: 1 hides a key, so ones above the diagonal."""
    return torch.ones(MASK, MASK, dtype=torch.int8).triu_(1).to(device)


def head_norm(npu: Any, x_TMC: Tensor, w_C: Tensor | None, eps: float) -> Tensor:
    """RMS norm of each head, if there is one."""
    if w_C is None:
        return x_TMC
    y: Tensor = npu.npu_rms_norm(x_TMC.contiguous(), w_C, eps)[0]
    return y


def rotate(
    npu: Any, q_THC: Tensor, k_TGC: Tensor, cos_TC: Tensor, sin_TC: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate the first cos_TC.shape[-1] numbers of each head.

    npu_mrope takes the rotary width from its cache of angles, and passes on the rest of a head;
    the fused rotary operators want a whole head of 128 ("Wrong rotaryCoeff: 128").
    """
    width = cos_TC.shape[-1]
    if width % ROTARY_STEP:
        return reference.rope(q_THC, k_TGC, cos_TC, sin_TC)
    half = width // 2
    angles = torch.cat([cos_TC[:, :half], sin_TC[:, :half]], dim=-1)
    q, k = npu.npu_mrope(
        torch.arange(len(angles), device=angles.device),
        q_THC.flatten(1),
        k_TGC.flatten(1),
        angles,
        q_THC.shape[-1],
        mrope_section=[0, 0, 0],
        rotary_mode="half",
    )
    return q.view(q_THC.shape), k.view(k_TGC.shape)


def store(npu: Any, k_TGC: Tensor, v_TGC: Tensor, cache: KVCache, step: Step) -> None:
    """'Norm' is the layout of our pages; the operator's default, PA_NZ, is not."""
    _check_type(cache, k_TGC.dtype)
    npu.npu_scatter_pa_kv_cache(
        k_TGC.contiguous(),
        v_TGC.contiguous(),
        cache.k_PSGC,
        cache.v_PSGC,
        step.slots_T.to(torch.int32),
        cache_mode="Norm",
    )


def _check_type(cache: KVCache, dtype: torch.dtype) -> None:
    """Of the pages: the operators have no scales for FP8."""
    if cache.k_PSGC.dtype != dtype:
        raise UsageError(
            f"backend 'ascend' keeps keys and values in the model's type ({dtype}), not in "
            f"{cache.k_PSGC.dtype}."
        )


def attend(
    npu: Any, q_THC: Tensor, cache: KVCache, step: Step, scale: float, mask: Tensor
) -> Tensor:
    """Queries end cumulatively; keys are counted a sequence, since they lie in pages."""
    _check_type(cache, q_THC.dtype)
    page = cache.k_PSGC.shape[1]
    if page % PAGE_STEP or page > LARGEST_PAGE:
        raise UsageError(
            f"backend 'ascend' takes KV pages of a multiple of {PAGE_STEP} tokens up to "
            f"{LARGEST_PAGE}, not of {page}."
        )
    heads, size = q_THC.shape[1:]
    groups = cache.k_PSGC.shape[2]
    keys, values, table = cache.k_PSGC, cache.v_PSGC, step.block_table_BP
    if size != HEAD_SIZE:
        q_THC, keys, values, table = _padded(q_THC, cache, table)
    y, _ = npu.npu_fused_infer_attention_score(
        q_THC.contiguous(),
        keys.flatten(2),
        values.flatten(2),
        atten_mask=mask,
        block_table=table,
        block_size=page,
        actual_seq_lengths=list(step.query_ends),
        actual_seq_lengths_kv=list(step.kv_lengths),
        num_heads=heads,
        num_key_value_heads=groups,
        input_layout="TND",
        sparse_mode=CAUSAL,
        scale=scale,
    )
    out: Tensor = y[..., :size]
    return out


def _padded(q_THC: Tensor, cache: KVCache, table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Heads filled up with zeros, which add nothing to a score or to a value.

    The pages in use are copied; GLM-4.5 to 4.7 have heads of 128 and never come here.
    """
    size = q_THC.shape[-1]
    if size > HEAD_SIZE:
        raise UsageError(f"backend 'ascend' takes heads of up to {HEAD_SIZE}, not of {size}.")
    missing = (0, HEAD_SIZE - size)
    pages = table.flatten().long()
    keys, values = (F.pad(x[pages], missing) for x in (cache.k_PSGC, cache.v_PSGC))
    renumbered = torch.arange(len(pages), dtype=torch.int32, device=table.device).view(table.shape)
    return F.pad(q_THC, missing), keys, values, renumbered
