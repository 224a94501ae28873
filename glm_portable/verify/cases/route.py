"""The router, where half of the field's bugs live: biases, ties, groups, factors, extremes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glm_portable.verify.call import Call
from glm_portable.verify.cases.case import Case
from glm_portable.verify.cases.data import Source

Make = Callable[[Source], Call]
SETTINGS: dict[str, Any] = {
    "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}  # fmt: skip


def biased(
    low: float, high: float, e: int = 64, d: int = 192, t: int = 40, **settings: Any
) -> Make:
    """Noise with outlier channels; biases between low and high, which BF16 would round."""

    def make(source: Source) -> Call:
        x, gate = source.normal(t, d, outliers=True), source.weight(e, d)
        bias = source.uniform(low, high, e)
        return Call("route", {"x": x, "gate": gate, "bias": bias}, SETTINGS | settings)

    return make


def exact(
    bias: Callable[[Source, int], Tensor],
    logits: Callable[[Source, int], Tensor] = lambda source, e: torch.zeros(e),
    e: int = 24,
    t: int = 5,
    **settings: Any,
) -> Make:
    """Logits and biases as given, of small multiples of powers of two: no sum of them rounds."""

    def make(source: Source) -> Call:
        gate = torch.zeros(e, 64)
        gate[:, 0] = logits(source, e)
        x = torch.ones(t, 64)
        x[:, 1:] = source.normal(t, 63)  # meets a gate of 0
        return Call("route", {"x": x, "gate": gate, "bias": bias(source, e)}, SETTINGS | settings)

    return make


def constant(value: float) -> Callable[[Source, int], Tensor]:
    return lambda source, e: torch.full((e,), value)


def few(source: Source, e: int) -> Tensor:
    """Four values for all experts: most choices are decided by the order of equal ones."""
    return source.integers(0, 4, e) / 4


def pairs(source: Source, e: int) -> Tensor:
    """Each logit twice."""
    return (source.integers(-8, 9, e // 2) / 4).repeat_interleave(2)


def infinite(source: Source, e: int) -> Tensor:
    bias = torch.full((e,), -torch.inf)
    chosen = source.order(e)[0]
    bias[chosen[:3]], bias[chosen[3]] = source.integers(0, 9, 3) / 8, torch.inf
    return bias


def favourite(source: Source, e: int) -> Tensor:
    bias = source.integers(0, 9, e) / 8
    bias[int(source.integers(0, e))] = 64.0
    return bias


def ends(source: Source, e: int) -> Tensor:
    """Two logits so large that their sigmoids are 1 and 0; the others 0."""
    logits = torch.zeros(e)
    logits[source.order(e)[0, :2]] = torch.tensor([2.0**100, -(2.0**100)])
    return logits


def nan_token(source: Source) -> Call:
    call = biased(6.8, 7.1, t=5)(source)
    call.tensors["x"][2, 3] = torch.nan
    return call


GROUPS: dict[str, Any] = {"n_group": 8, "topk_group": 4}
FACTOR: dict[str, Any] = {"routed_scaling_factor": 2.5}
PLAIN: dict[str, Any] = {"norm_topk_prob": False}
FOUR: dict[str, Any] = {"num_experts_per_tok": 4}

CASES = [
    Case("route", "small bias", biased(-0.1, 0.1)),
    Case("route", "bias around 7", biased(6.8, 7.1, **FACTOR)),
    Case("route", "bias 12 to 35", biased(12, 35, **FACTOR)),
    Case("route", "groups", biased(6.8, 7.1, **GROUPS, **FACTOR)),
    Case("route", "unnormalised", biased(6.8, 7.1, **PLAIN)),
    Case("route", "unnormalised, factor 2.5", biased(-0.1, 0.1, **PLAIN, **FACTOR)),
    Case("route", "ties", biased(3, 3)),
    Case("route", "160 experts, one token", biased(6.8, 7.1, 160, 544, 1, **FACTOR)),
    Case("route", "128 experts, 17 tokens", biased(-0.1, 0.1, 128, 256, 17)),
    Case("route", "2049 tokens", biased(6.8, 7.1, 16, 64, 2049, **FOUR)),
    Case("route", "exact ties", exact(few, pairs, 64), exact=True),
    Case("route", "exact ties, groups", exact(few, pairs, 64, **GROUPS), exact=True),
    Case("route", "equal scores", exact(constant(7.0), e=160), exact=True),
    Case("route", "equal scores, groups of 8", exact(constant(0.0), e=24, n_group=3, topk_group=2,
                                                     **FOUR), exact=True),
    Case("route", "infinite biases", exact(infinite, **FOUR), exact=True),
    Case("route", "one expert is everybody's", exact(favourite, **FOUR), exact=True),
    Case("route", "logits beyond the sigmoid", exact(constant(0.0), ends, **FOUR), exact=True),
    Case("route", "scores of zero", exact(few, constant(-1024.0), **FOUR, **FACTOR), exact=True),
    Case("route", "scores near the smallest sum", exact(few, constant(-46.0), **FOUR), exact=True),
    Case("route", "one token is NaN", nan_token),
    *(Case("route", f"{name}, 17 tokens", biased(low, high, e, d, 17, **settings), full=True)
      for name, e, d, settings in (("GLM-4.5", 160, 5120, FACTOR), ("Air", 128, 4096, {}))
      for low, high in ((6.8, 7.1),)),
]  # fmt: skip
