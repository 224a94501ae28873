"""Faults of qk-norm and rotation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm_portable.ops import KVCache, Step
from glm_portable.verify.faults.fault import BOTH, OPS, Fault, Level, Op

THETA = 1e6
"""Base of the rotation in GLM-4.5."""

Optional = Tensor | None


def norm_after(
    honest: Op, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: KVCache,
    step: Step, q_norm: Optional = None, k_norm: Optional = None, eps: float = 0.0,
) -> Any:  # fmt: skip
    """Rotation first, norm second."""
    q, k = (rotated(x, cos, sin) for x in (q, k))
    return honest(q, k, v, *still(cos), cache, step, q_norm, k_norm, eps)


def norm_missing(honest: Op, *arguments: Any) -> Any:
    return honest(*arguments[:7])


def norm_of_queries_only(
    honest: Op, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: KVCache,
    step: Step, q_norm: Optional = None, k_norm: Optional = None, eps: float = 0.0,
) -> Any:  # fmt: skip
    return honest(q, k, v, cos, sin, cache, step, q_norm, None, eps)


def norms_exchanged(
    honest: Op, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: KVCache,
    step: Step, q_norm: Optional = None, k_norm: Optional = None, eps: float = 0.0,
) -> Any:  # fmt: skip
    """The queries get the keys' weight, and the other way round."""
    return honest(q, k, v, cos, sin, cache, step, k_norm, q_norm, eps)


def norm_over_heads(
    honest: Op, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: KVCache,
    step: Step, q_norm: Optional = None, k_norm: Optional = None, eps: float = 0.0,
) -> Any:  # fmt: skip
    """One mean over all heads of a token, as in OLMo 2."""
    if q_norm is None or k_norm is None:
        return honest(q, k, v, cos, sin, cache, step, q_norm, k_norm, eps)
    q, k = (normed(x, w, eps, (-2, -1)) for x, w in ((q, q_norm), (k, k_norm)))
    return honest(q, k, v, cos, sin, cache, step)


def norm_epsilon(
    honest: Op, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: KVCache,
    step: Step, q_norm: Optional = None, k_norm: Optional = None, eps: float = 0.0,
) -> Any:  # fmt: skip
    return honest(q, k, v, cos, sin, cache, step, q_norm, k_norm, 1e-6 if eps else eps)


def turned_further(
    queries: float, keys: float, honest: Op, q: Tensor, k: Tensor, v: Tensor, cos: Tensor,
    sin: Tensor, cache: KVCache, step: Step, q_norm: Optional = None, k_norm: Optional = None,
    eps: float = 0.0,
) -> Any:  # fmt: skip
    """Queries and keys are rotated for positions that are so much higher."""
    q, k = (x if w is None else normed(x, w, eps) for x, w in ((q, q_norm), (k, k_norm)))
    q, k = rotated(q, *shifted(cos, sin, queries)), rotated(k, *shifted(cos, sin, keys))
    return honest(q, k, v, *still(cos), cache, step)


def rotated_otherwise(
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor], honest: Op, q: Tensor, k: Tensor,
    v: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, step: Step, q_norm: Optional = None,
    k_norm: Optional = None, eps: float = 0.0,
) -> Any:  # fmt: skip
    """Another rotation behind the right norm."""
    q, k = (x if w is None else normed(x, w, eps) for x, w in ((q, q_norm), (k, k_norm)))
    return honest(rotate(q, cos, sin), rotate(k, cos, sin), v, *still(cos), cache, step)


def keys_not_rotated(
    honest: Op, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cache: KVCache,
    step: Step, q_norm: Optional = None, k_norm: Optional = None, eps: float = 0.0,
) -> Any:  # fmt: skip
    q = q if q_norm is None else normed(q, q_norm, eps)
    k = k if k_norm is None else normed(k, k_norm, eps)
    return honest(rotated(q, cos, sin), k, v, *still(cos), cache, step)


def interleaved(x_TMC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Dimension 2i is rotated against 2i + 1, as in GPT-J and in GLM-4-9B."""
    width = cos_TC.shape[-1]
    x, kept = x_TMC[..., :width], x_TMC[..., width:]
    halves = torch.cat([x[..., ::2], x[..., 1::2]], -1)
    turned = rotated(halves, cos_TC, sin_TC)
    low, high = turned.chunk(2, -1)
    return torch.cat([torch.stack([low, high], -1).flatten(-2), kept], -1)


def whole_head(x_TMC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """The dimensions that should pass through are rotated like the first ones."""
    width = cos_TC.shape[-1]
    parts = [rotated(part, cos_TC, sin_TC) for part in torch.split(x_TMC, width, -1)]
    return torch.cat(parts, -1)


def last_dimensions(x_TMC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """The end of a head is rotated, not its beginning."""
    width = cos_TC.shape[-1]
    kept, x = x_TMC[..., :-width], x_TMC[..., -width:]
    return torch.cat([kept, rotated(x, cos_TC, sin_TC)], -1)


def backwards(x_TMC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    return rotated(x_TMC, cos_TC, -sin_TC)


def first_token_for_all(x_TMC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Every token of a step is at the first one's position."""
    return rotated(x_TMC, cos_TC[:1].expand_as(cos_TC), sin_TC[:1].expand_as(sin_TC))


def rotated(x_TMC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """As it should be."""
    cos, sin = cos_TC.unsqueeze(1), sin_TC.unsqueeze(1)
    width = cos.shape[-1]
    x, kept = x_TMC[..., :width], x_TMC[..., width:]
    low, high = x.chunk(2, -1)
    return torch.cat([x * cos + torch.cat([-high, low], -1) * sin, kept], -1)


def normed(x: Tensor, w_C: Tensor, eps: float, over: tuple[int, ...] = (-1,)) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(over, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * w_C


def still(cos_TC: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of a rotation by nothing."""
    return torch.ones_like(cos_TC), torch.zeros_like(cos_TC)


def shifted(cos_TC: Tensor, sin_TC: Tensor, by: float) -> tuple[Tensor, Tensor]:
    """The angles of positions that are `by` higher."""
    width = cos_TC.shape[-1]
    even = torch.arange(0, width, 2, device=cos_TC.device, dtype=torch.float64)
    angle = (by * THETA ** (-even / width)).repeat(2)
    cos, sin = cos_TC.double(), sin_TC.double()
    turned = cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()
    return turned[0].to(cos_TC.dtype), turned[1].to(cos_TC.dtype)


def _fault(
    name: str,
    body: Callable[..., Any],
    stands_for: str,
    levels: frozenset[Level] = BOTH,
    why: str = "",
) -> Fault:
    return Fault(name, "rope_store", stands_for, levels, why, {"rope_store": body})


RELATIVE = "attention sees differences of positions alone"
SMALL = "the pocket model's heads are large against eps"

ROPE = [
    _fault("qk-norm-after-rope", norm_after, "order of norm and rotation"),
    _fault("qk-norm-missing", norm_missing, "use_qk_norm left at the class default, false"),
    _fault("qk-norm-of-queries-only", norm_of_queries_only, "k_norm not applied"),
    _fault("qk-norms-exchanged", norms_exchanged, "q_norm and k_norm exchanged"),
    _fault("qk-norm-over-all-heads", norm_over_heads, "norm over heads * head_dim"),
    _fault("qk-norm-epsilon-1e-6", norm_epsilon, "an operator's default", OPS, SMALL),
    _fault("rope-queries-off-by-one", partial(turned_further, 1, 0), "position of the next token"),
    _fault("rope-keys-off-by-one", partial(turned_further, 0, -1), "position of the one before"),
    _fault("rope-all-off-by-one", partial(turned_further, 1, 1), "positions counted from 1", OPS,
           RELATIVE),
    _fault("rope-interleaved", partial(rotated_otherwise, interleaved), "GPT-J's order for NeoX's"),
    _fault("rope-whole-head", partial(rotated_otherwise, whole_head),
           "partial_rotary_factor not read (vllm-ascend PR#2847)"),
    _fault("rope-last-dimensions", partial(rotated_otherwise, last_dimensions),
           "the other half of a head"),
    _fault("rope-backwards", partial(rotated_otherwise, backwards), "sign of sin"),
    _fault("rope-first-position", partial(rotated_otherwise, first_token_for_all),
           "one position a sequence (vllm#31625)"),
    _fault("rope-keys-not-rotated", keys_not_rotated, "keys stored before the rotation"),
]  # fmt: skip
