"""Backends that are wrong in ways that a look at some answers does not show.

Each is the reference but for one op, and wrong for some shapes, lengths, counts or histories alone.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.backends import reference
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Ops, Step, Weight


class Wrong:
    """The reference where a subclass has no op of its own."""

    name = "wrong"

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)


class SplitDecode(Wrong):
    """A decode step over more than 24 keys is split, and the second half forgets its first key."""

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        out = reference.attend(q_THC, cache, step, scale)
        begins = (0, *step.query_ends[:-1])
        for b, (begin, end) in enumerate(zip(begins, step.query_ends, strict=True)):
            length = step.kv_lengths[b]
            if end - begin == 1 and length > 24:
                out[begin:end] = without_keys(
                    q_THC[begin:end], cache, step, b, scale, length // 2, length // 2 + 1
                )
        return out


class ChunkBoundary(Wrong):
    """A chunk that begins within a page does not see the tokens before it in this page."""

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        out = reference.attend(q_THC, cache, step, scale)
        size = cache.k_PSGC.shape[1]
        begins = (0, *step.query_ends[:-1])
        for b, (begin, end) in enumerate(zip(begins, step.query_ends, strict=True)):
            cached = step.kv_lengths[b] - (end - begin)
            if end - begin > 4 and cached % size:
                first = cached - cached % size
                out[begin:end] = without_keys(
                    q_THC[begin:end], cache, step, b, scale, first, cached
                )
        return out


class LastRow(Wrong):
    """A tile of 4 rows that holds one alone gives it the routing weight of the row before it."""

    def experts(
        self, x_TD: Tensor, gate_up: Weight, down: Weight, weights_TK: Tensor, experts_TK: Tensor
    ) -> Tensor:
        weights = weights_TK.clone()
        for e in sorted(set(experts_TK.flatten().tolist())):
            tokens, choice = (experts_TK == e).nonzero(as_tuple=True)
            if len(tokens) > 4 and len(tokens) % 4 == 1:
                weights[tokens[-1], choice[-1]] = weights_TK[tokens[-2], choice[-2]]
        return reference.experts(x_TD, gate_up, down, weights, experts_TK)


class NarrowScale(Wrong):
    """Scales of FP8 weights are kept in a type whose exponent ends at `top`."""

    def __init__(self, top: float) -> None:
        self.top = top

    def pack(self, w: Weight) -> Weight:
        if w.scale is None:
            return w
        return replace(w, scale=torch.where(w.scale > self.top, w.scale / 16, w.scale))


class ReusedBuffer(Wrong):
    """The norm's sum lies in a buffer that its next call writes to."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0)

    def rms_norm(
        self, x: Tensor, w: Tensor, eps: float, residual: Tensor | None = None, feeds: Any = None
    ) -> tuple[Tensor, Tensor]:
        normed, total = reference.rms_norm(x, w, eps, residual)
        if residual is None or len(x) != 2:
            return normed, total
        if self.buffer.shape != total.shape or self.buffer.dtype != total.dtype:
            self.buffer = torch.empty_like(total)
        # What the last call left is read before this one's sum is whole.
        stale = self.buffer.clone()
        self.buffer.copy_(total)
        return normed, torch.where(torch.arange(total.shape[1]) < 2, stale, self.buffer)


class StalePage(Wrong):
    """Keys of a page are gathered once; what is added to the page later is not seen."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], Tensor] = {}

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        k = cache.k_PSGC.clone()
        for page in sorted(set(step.block_table_BP.flatten().tolist())):
            key = cache.k_PSGC.data_ptr(), page
            k[page] = self.seen.setdefault(key, k[page].clone())
        return reference.attend(q_THC, replace(cache, k_PSGC=k), step, scale)


class CoarseBias(Wrong):
    """The router's bias goes through BF16."""

    def route(self, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
        return reference.route(x, gate, bias.bfloat16().to(bias.dtype), cfg)


class Codes(Tensor):
    """A tensor with codes beside its numbers."""

    codes: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch does


class WrongCodes(Wrong):
    """The norm puts codes for the next product beside its numbers; those of row 16 on are off."""

    def rms_norm(
        self, x: Tensor, w: Tensor, eps: float, residual: Tensor | None = None, feeds: Any = None
    ) -> tuple[Tensor, Tensor]:
        normed, total = reference.rms_norm(x, w, eps, residual)
        if feeds is None:
            return normed, total
        coded = normed.as_subclass(Codes)
        coded.codes = normed.clone()
        coded.codes[16:] *= 1.03
        return coded, total

    def linear(self, x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
        return reference.linear(x.codes if isinstance(x, Codes) else x, w, bias)


def without_keys(
    q_THC: Tensor, cache: KVCache, step: Step, b: int, scale: float, begin: int, end: int
) -> Tensor:
    """Attention of one sequence's last queries that skips keys `begin` to `end`."""
    length, size = step.kv_lengths[b], cache.k_PSGC.shape[1]
    pages = step.block_table_BP[b, : -(-length // size)].long()
    k, v = (p[pages].flatten(0, 1)[:length] for p in (cache.k_PSGC, cache.v_PSGC))
    q = q_THC.view(len(q_THC), k.shape[1], -1, q_THC.shape[2])
    scores = torch.einsum("tgmc,lgc->gmtl", q, k) * scale
    at = torch.arange(length)
    hidden = at > torch.arange(length - len(q), length).unsqueeze(1)
    hidden |= (at >= begin) & (at < end)
    p = scores.masked_fill(hidden, float("-inf")).float().softmax(-1).to(q.dtype)
    return torch.einsum("gmtl,lgc->tgmc", p, v).flatten(1, 2)


def backend(wrong: Any) -> Ops:
    """As what the type checker takes for one."""
    return wrong  # type: ignore[no-any-return]


REFERENCE = ops.load("reference")
