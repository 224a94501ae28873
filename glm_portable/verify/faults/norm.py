"""Faults of the norm and of the residual stream that it sums."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm_portable.ops import Weight
from glm_portable.verify.faults.attention import cut
from glm_portable.verify.faults.fault import OPS, Fault, Op

Optional = Tensor | None


def renormed(
    norm: Callable[[Tensor, Tensor, float], Tensor],
    honest: Op,
    x_TD: Tensor,
    w_D: Tensor,
    eps: float,
    residual_TD: Optional = None,
    feeds: Weight | None = None,
) -> Any:
    """Another norm of the right sum."""
    total = honest(x_TD, w_D, eps, residual_TD, feeds)[1]
    return norm(total, w_D, eps), total


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def accumulated_in_bf16(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    """Squares are summed in BF16, 16 columns at a time."""
    total = torch.zeros_like(x_TD[:, :1], dtype=torch.bfloat16)
    for part in torch.split(x_TD.bfloat16().square(), 16, dim=-1):
        total = total + part.sum(-1, keepdim=True)
    mean = _wide(total) / x_TD.shape[1]
    return (_wide(x_TD) * torch.rsqrt(mean + eps)).to(x_TD.dtype) * w_D


def padded(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    """The mean is over the width of the block, which is a power of two."""
    width = 1 << (x_TD.shape[1] - 1).bit_length()
    mean = _wide(x_TD).square().sum(-1, keepdim=True) / width
    return (_wide(x_TD) * torch.rsqrt(mean + eps)).to(x_TD.dtype) * w_D


def centred(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    """LayerNorm: the mean is subtracted first."""
    wide = _wide(x_TD)
    wide = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x_TD.dtype) * w_D


def epsilon_outside(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    """eps is added to the root, not under it."""
    root = _wide(x_TD).square().mean(-1, keepdim=True).sqrt()
    return (_wide(x_TD) / (root + eps)).to(x_TD.dtype) * w_D


def squares_overflow(x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
    """Squares in float16, which ends at 65504."""
    mean = _wide(x_TD).square().clamp(max=65504).mean(-1, keepdim=True)
    return (_wide(x_TD) * torch.rsqrt(mean + eps)).to(x_TD.dtype) * w_D


def other_epsilon(
    eps: float, honest: Op, x: Tensor, w: Tensor, asked: float, *rest: Any, **named: Any
) -> Any:
    return honest(x, w, eps, *rest, **named)


def weight_forgotten(honest: Op, x: Tensor, w_D: Tensor, *rest: Any, **named: Any) -> Any:
    return honest(x, torch.ones_like(w_D), *rest, **named)


def weight_plus_one(honest: Op, x: Tensor, w_D: Tensor, *rest: Any, **named: Any) -> Any:
    """Gemma's norm, which stores weight - 1."""
    return honest(x, w_D + 1, *rest, **named)


def residual_dropped(
    honest: Op, x: Tensor, w: Tensor, eps: float, residual: Optional = None,
    feeds: Weight | None = None,
) -> Any:  # fmt: skip
    """The stream is lost: only this layer's output goes on."""
    return honest(x, w, eps, None, feeds)


def residual_twice(
    honest: Op, x: Tensor, w: Tensor, eps: float, residual: Optional = None,
    feeds: Weight | None = None,
) -> Any:  # fmt: skip
    return honest(x, w, eps, None if residual is None else residual * 2, feeds)


def sum_not_kept(
    honest: Op, x: Tensor, w: Tensor, eps: float, residual: Optional = None,
    feeds: Weight | None = None,
) -> Any:  # fmt: skip
    """The norm is of the sum, but the old stream goes on."""
    normed, total = honest(x, w, eps, residual, feeds)
    return normed, total if residual is None else residual


def norm_kept(honest: Op, *arguments: Any, **named: Any) -> Any:
    """The normed rows go on as the stream."""
    normed, _ = honest(*arguments, **named)
    return normed, normed


def norm_before_sum(
    honest: Op, x: Tensor, w: Tensor, eps: float, residual: Optional = None,
    feeds: Weight | None = None,
) -> Any:  # fmt: skip
    """Only x is normed; the sum is right."""
    return honest(x, w, eps, None, feeds)[0], honest(x, w, eps, residual, feeds)[1]


def truncated(
    honest: Op, x: Tensor, w: Tensor, eps: float, residual: Optional = None,
    feeds: Weight | None = None,
) -> Any:  # fmt: skip
    """The norm is cut to BF16, not rounded."""
    normed, total = honest(x, w, eps, residual, feeds)
    if x.dtype != torch.bfloat16:
        return normed, total
    return cut(honest(total.float(), w.float(), eps)[0]), total


SMALL = "the pocket model's rows are large against eps"
WIDE = "the pocket model's width is a power of two"


def _fault(name: str, body: Callable[..., Any], stands_for: str, why: str = "") -> Fault:
    if why:
        return Fault(name, "rms_norm", stands_for, OPS, why, {"rms_norm": body})
    return Fault(name, "rms_norm", stands_for, bodies={"rms_norm": body})


NORM = [
    _fault("norm-accumulated-in-bf16", partial(renormed, accumulated_in_bf16),
           "mean of squares in the model's type", "a layer's own rounding is larger"),
    _fault("norm-padded-width", partial(renormed, padded), "mean over the padded block", WIDE),
    _fault("norm-centred", partial(renormed, centred), "LayerNorm for RMSNorm"),
    _fault("norm-epsilon-outside", partial(renormed, epsilon_outside), "eps outside the root",
           SMALL),
    _fault("norm-epsilon-1e-6", partial(other_epsilon, 1e-6),
           "an operator's default (npu_add_rms_norm_dynamic_quant)", SMALL),
    _fault("norm-epsilon-missing", partial(other_epsilon, 0.0), "eps = 0", SMALL),
    _fault("norm-squares-overflow", partial(renormed, squares_overflow), "squares in float16",
           "the pocket model's activations are small"),
    _fault("norm-truncated", truncated, "conversion to BF16 that cuts"),
    _fault("norm-weight-forgotten", weight_forgotten, "gamma not applied"),
    _fault("norm-weight-plus-one", weight_plus_one, "Gemma's convention"),
    _fault("residual-dropped", residual_dropped, "residual not passed to the fused norm"),
    _fault("residual-twice", residual_twice, "residual added before and in the fused norm"),
    _fault("residual-not-updated", sum_not_kept, "in-place sum that was not in place "
           "(vllm-ascend PR#6182)"),
    _fault("residual-is-the-norm", norm_kept, "outputs of the fused norm exchanged"),
    _fault("norm-before-sum", norm_before_sum, "norm of x alone"),
]  # fmt: skip
