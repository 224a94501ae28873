"""Faults of attention: masks, scales, heads, and partial results put together."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm_portable.ops import KVCache, Step
from glm_portable.verify.faults.fault import BOTH, OPS, Body, Fault, Level, Op
from glm_portable.verify.faults.pages import owner

WINDOW = 4096
"""Keys that a fault with a window still sees."""


def one_by_one(
    lengths: Callable[[Tensor, Tensor], Tensor], honest: Op, q: Tensor, cache: KVCache,
    step: Step, scale: float,
) -> Any:  # fmt: skip
    """Every query as a sequence of its own, with another number of keys.

    lengths: of the right number, and of the number that the query's sequence has.
    """
    owners = owner(step)
    behind = step.query_ends_B[owners] - 1 - torch.arange(len(owners), device=owners.device)
    whole = step.kv_lengths_B[owners]
    seen = lengths(whole - behind, whole).to(torch.int32)
    ends = torch.arange(1, len(owners) + 1, device=owners.device, dtype=torch.int32)
    apart = replace(
        step,
        query_ends_B=ends,
        kv_lengths_B=seen,
        block_table_BP=step.block_table_BP[owners],
        query_ends=tuple(ends.tolist()),
        kv_lengths=tuple(seen.tolist()),
    )
    return honest(q, cache, apart, scale)


def one_key_ahead(right: Tensor, whole: Tensor) -> Tensor:
    return torch.minimum(right + 1, whole)


def newest_key_missed(right: Tensor, whole: Tensor) -> Tensor:
    return (right - 1).clamp(min=1)


def no_mask(right: Tensor, whole: Tensor) -> Tensor:
    return whole


def few_without_mask(right: Tensor, whole: Tensor) -> Tensor:
    """Queries of a verification see each other, as if each were the last of its sequence."""
    return torch.where(whole - right < 4, whole, right)


def first_for_all(right: Tensor, whole: Tensor) -> Tensor:
    """Nothing beyond the keys that fit a window is read."""
    return right.clamp(max=WINDOW)


def windowed(honest: Op, q: Tensor, cache: KVCache, step: Step, scale: float) -> Any:
    """Only the newest keys are seen: the oldest pages of long sequences are skipped."""
    size = cache.k_PSGC.shape[1]
    skipped = [max(0, kv - WINDOW) // size for kv in step.kv_lengths]
    table = torch.stack([row.roll(-n) for row, n in zip(step.block_table_BP, skipped, strict=True)])
    begins = (0, *step.query_ends[:-1])
    counts = [end - begin for begin, end in zip(begins, step.query_ends, strict=True)]
    lengths = tuple(
        max(n, kv - s * size) for n, kv, s in zip(counts, step.kv_lengths, skipped, strict=True)
    )
    device_lengths = step.kv_lengths_B.new_tensor(lengths)
    short = replace(step, block_table_BP=table, kv_lengths=lengths, kv_lengths_B=device_lengths)
    return honest(q, cache, short, scale)


def late_sequences_lost(honest: Op, q: Tensor, cache: KVCache, step: Step, scale: float) -> Any:
    """Sequences from the 65th on are not computed."""
    y = honest(q, cache, step, scale)
    return torch.where((owner(step) < 64).view(-1, 1, 1), y, 0)


def truncated(honest: Op, q: Tensor, cache: KVCache, step: Step, scale: float) -> Any:
    """The result is cut to BF16, not rounded."""
    if q.dtype != torch.bfloat16 or cache.k_PSGC.dtype.itemsize == 1:
        return honest(q, cache, step, scale)
    wide = replace(cache, k_PSGC=cache.k_PSGC.float(), v_PSGC=cache.v_PSGC.float())
    return cut(honest(q.float(), wide, step, scale))


def cut(x: Tensor) -> Tensor:
    """Float32 to BF16 by dropping bits."""
    return (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()


def scaled(factor: Callable[[float], float], honest: Op, q: Tensor, *rest: Any) -> Any:
    cache, step, scale = rest
    return honest(q, cache, step, factor(scale))


def heads_interleaved(honest: Op, q_THC: Tensor, cache: KVCache, *rest: Any) -> Any:
    """Query head h reads key head h % G instead of h // (H / G)."""
    heads, groups = q_THC.shape[1], cache.k_PSGC.shape[2]
    order = torch.arange(heads, device=q_THC.device).view(-1, groups).T.flatten()
    y = torch.empty_like(q_THC)
    y[:, order] = honest(q_THC[:, order].contiguous(), cache, *rest)
    return y


def one_key_head(honest: Op, q: Tensor, cache: KVCache, *rest: Any) -> Any:
    """All query heads read the first key head."""
    first = [x[:, :, :1].expand(x.shape).contiguous() for x in (cache.k_PSGC, cache.v_PSGC)]
    return honest(q, replace(cache, k_PSGC=first[0], v_PSGC=first[1]), *rest)


def values_from_keys(honest: Op, q: Tensor, cache: KVCache, *rest: Any) -> Any:
    return honest(q, replace(cache, v_PSGC=cache.k_PSGC, v_scale=cache.k_scale), *rest)


def units(k: float | None, v: float | None, honest: Op, q: Tensor, cache: KVCache,
          *rest: Any) -> Any:  # fmt: skip
    """Other scales of FP8 pages than they have."""
    k_scale, v_scale = (cache.k_scale if k is None else k), (cache.v_scale if v is None else v)
    return honest(q, replace(cache, k_scale=k_scale, v_scale=v_scale), *rest)


def units_exchanged(honest: Op, q: Tensor, cache: KVCache, *rest: Any) -> Any:
    exchanged = replace(cache, k_scale=cache.v_scale, v_scale=cache.k_scale)
    return honest(q, exchanged, *rest)


def other_dialect(honest: Op, q: Tensor, cache: KVCache, *rest: Any) -> Any:
    """FP8 pages are read in the other dialect, which halves or doubles them."""
    if cache.k_PSGC.dtype.itemsize > 1:
        return honest(q, cache, *rest)
    factor = 0.5 if cache.k_PSGC.dtype == torch.float8_e4m3fn else 2.0
    wrong = replace(cache, k_scale=cache.k_scale * factor, v_scale=cache.v_scale * factor)
    return honest(q, wrong, *rest)


def recomputed(
    combine: Callable[[Tensor, Tensor], Tensor], honest: Op, q_THC: Tensor, cache: KVCache,
    step: Step, scale: float,
) -> Any:  # fmt: skip
    """Attention token by token; `combine` makes (H, C) of scores (H, L) and values (H, L, C)."""
    owners, out = owner(step).tolist(), torch.empty_like(q_THC)
    size, heads = cache.k_PSGC.shape[1], q_THC.shape[1]
    wide = torch.promote_types(q_THC.dtype, torch.float32)
    for t, b in enumerate(owners):
        length = step.kv_lengths[b] - (step.query_ends[b] - 1 - t)
        pages = step.block_table_BP[b, : -(-length // size)].long()
        k, v = (
            x[pages].flatten(0, 1)[:length].to(wide) * unit
            for x, unit in ((cache.k_PSGC, cache.k_scale), (cache.v_PSGC, cache.v_scale))
        )
        k, v = (x.repeat_interleave(heads // x.shape[1], 1).transpose(0, 1) for x in (k, v))
        scores = (k @ q_THC[t].to(wide).unsqueeze(-1)).squeeze(-1) * scale
        out[t] = combine(scores, v).to(out.dtype)
    return out


def split_not_rescaled(scores_HL: Tensor, v_HLC: Tensor) -> Tensor:
    """Two halves of the keys, each against its own largest score, are simply added."""
    middle = scores_HL.shape[1] // 2
    parts = [(s, v) for s, v in (
        (scores_HL[:, :middle], v_HLC[:, :middle]), (scores_HL[:, middle:], v_HLC[:, middle:]),
    ) if s.shape[1]]  # fmt: skip
    weights = [(s - s.amax(-1, keepdim=True)).exp() for s, _ in parts]
    sums = [(w.unsqueeze(1) @ v).squeeze(1) for w, (_, v) in zip(weights, parts, strict=True)]
    total = torch.stack(sums).sum(0)
    return total / torch.stack([w.sum(-1, keepdim=True) for w in weights]).sum(0)


def split_averaged(scores_HL: Tensor, v_HLC: Tensor) -> Tensor:
    """The results of two halves of the keys are averaged."""
    middle = max(1, scores_HL.shape[1] // 2)
    halves = [
        (scores_HL[:, :middle], v_HLC[:, :middle]),
        (scores_HL[:, middle:], v_HLC[:, middle:]),
    ]
    results = [(s.softmax(-1).unsqueeze(1) @ v).squeeze(1) for s, v in halves if s.shape[1]]
    return torch.stack(results).mean(0)


def first_key_ignored(scores_HL: Tensor, v_HLC: Tensor) -> Tensor:
    if scores_HL.shape[1] > 1:
        scores_HL, v_HLC = scores_HL[:, 1:], v_HLC[:, 1:]
    return (scores_HL.softmax(-1).unsqueeze(1) @ v_HLC).squeeze(1)


def with_a_sink(scores_HL: Tensor, v_HLC: Tensor) -> Tensor:
    """One more score of 0 without a value: softmax of padding, or an attention sink."""
    sink = torch.zeros_like(scores_HL[:, :1])
    p = torch.cat([scores_HL, sink], -1).softmax(-1)[:, :-1]
    return (p.unsqueeze(1) @ v_HLC).squeeze(1)


def _fault(
    name: str,
    body: Body,
    stands_for: str,
    levels: frozenset[Level] = BOTH,
    why: str = "",
) -> Fault:
    return Fault(name, "attend", stands_for, levels, why, {"attend": body})


BF16_PAGES = "the pocket model's pages are BF16"
SHORT = "the pocket model's prompt is short"

ATTENTION = [
    _fault("attend-one-key-ahead", partial(one_by_one, one_key_ahead),
           "causal mask off by one"),
    _fault("attend-newest-key-missed", partial(one_by_one, newest_key_missed),
           "causal mask off by one, the other way"),
    _fault("attend-no-mask", partial(one_by_one, no_mask), "sparse_mode 0 (FIA)"),
    _fault("attend-verify-unmasked", partial(one_by_one, few_without_mask),
           "several queries taken for decode (vllm#31625)"),
    _fault("attend-first-keys-only", partial(one_by_one, first_for_all),
           "lengths beyond a buffer (aiter#5049)", OPS, SHORT),
    _fault("attend-windowed", windowed, "sliding window on by default (vllm#56605)", OPS, SHORT),
    _fault("attend-late-sequences-lost", late_sequences_lost,
           "batch beyond a bucket (ATOM PR#273)", OPS, "one sequence is compared"),
    _fault("attend-truncated", truncated, "conversion to BF16 that cuts"),
    _fault("attend-first-key-ignored", partial(recomputed, first_key_ignored),
           "loop from 1"),
    _fault("attend-with-a-sink", partial(recomputed, with_a_sink), "softmax over padding"),
    _fault("attend-unscaled", partial(scaled, lambda scale: 1.0),
           "scale's default of 1.0 (npu_fused_infer_attention_score)"),
    _fault("attend-scale-squared", partial(scaled, lambda scale: scale * scale),
           "1 / C for 1 / sqrt(C)"),
    _fault("attend-scale-of-half-a-head", partial(scaled, lambda scale: scale * 2**0.5),
           "scale of the rotated part"),
    _fault("attend-heads-interleaved", heads_interleaved, "h % G for h // (H / G)"),
    _fault("attend-one-key-head", one_key_head, "multi-query for grouped-query"),
    _fault("attend-values-from-keys", values_from_keys, "V read from K"),
    _fault("attend-split-not-rescaled", partial(recomputed, split_not_rescaled),
           "split-KV combined without the largest scores"),
    _fault("attend-split-averaged", partial(recomputed, split_averaged),
           "split-KV combined by the mean"),
    _fault("kv-key-scale-ignored", partial(units, 1.0, None),
           "scale not propagated (vllm PR#34863)", OPS, BF16_PAGES),
    _fault("kv-value-scale-ignored", partial(units, None, 1.0),
           "scale not propagated (vllm PR#34863)", OPS, BF16_PAGES),
    _fault("kv-scales-exchanged", units_exchanged,
           "KV scale loaded wrong (ATOM PR#273)", OPS, BF16_PAGES),
    _fault("kv-other-dialect", other_dialect, "FNUZ pages read as OCP (vllm#45562)", OPS,
           BF16_PAGES),
]  # fmt: skip
