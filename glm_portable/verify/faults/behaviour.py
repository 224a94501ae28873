"""Faults of results that are right: not the same twice, not the same in company, not the chip's."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.ops import KVCache, Step
from glm_portable.verify.faults.fault import OPS, Body, Fault, Op


def unrepeatable(honest: Op, *arguments: Any) -> Any:
    """One value is off by its last bit in half of the calls."""
    y = honest(*arguments)
    return nudged(y, 0) if torch.rand(()) < 0.5 else y


def depends_on_neighbours(honest: Op, *arguments: Any) -> Any:
    """Every row is off by a last bit if there is more than one."""
    y = honest(*arguments)
    return y if len(y) == 1 else nudged(y, slice(None))


def depends_on_the_chunk(honest: Op, q: Tensor, cache: KVCache, step: Step, scale: float) -> Any:
    """A query is off by a last bit if others of its sequence are in the step."""
    y, begin = honest(q, cache, step, scale), 0
    for end in step.query_ends:
        if end - begin > 1:
            y = nudged(y, slice(begin, end))
        begin = end
    return y


def depends_on_the_place(honest: Op, x: Tensor, *arguments: Any) -> Any:
    """The last of several rows is off by a last bit, where it is not 0."""
    weights, experts = honest(x, *arguments)
    if len(x) > 1:
        weights = weights.clone()
        weights[-1] = torch.nextafter(weights[-1], weights[-1] * 2)
    return weights, experts


def nudged(y: Tensor, rows: int | slice) -> Tensor:
    """The first value of some rows, one unit in the last place away from 0."""
    y = y.clone()
    bits = y.view(torch.int16 if y.itemsize == 2 else torch.int32).view(len(y), -1)
    bits[rows, 0] += y.view(len(y), -1)[rows, 0].isfinite().to(bits.dtype)
    return y


def by_the_reference(name: str) -> Body:
    """The reference's op, whatever the backend has."""
    return partial(_instead, getattr(reference, name))


def _instead(other: Op, honest: Op, *arguments: Any, **named: Any) -> Any:
    return other(*arguments, **named)


MODEL_CANNOT = "the model level compares numbers, and these are right"
BATCHED = ("linear", "experts", "attend")

BEHAVIOUR = [
    *(Fault(f"{op}-unrepeatable", op, "promised, but sums in the order of atomics (aiter#5108)",
            OPS, MODEL_CANNOT, {op: unrepeatable}, claims={"deterministic": True})
      for op in BATCHED),
    *(Fault(f"{op}-depends-on-neighbours", op,
            "promised, but blocks chosen by the batch (vllm-ascend#11317)",
            OPS, MODEL_CANNOT, {op: depends_on_neighbours}, claims={"batch_invariant": True})
      for op in BATCHED),
    Fault("attend-depends-on-the-chunk", "attend",
          "promised, but a query's block has those of its chunk (split prompts, cached ones)",
          OPS, MODEL_CANNOT, {"attend": depends_on_the_chunk}, claims={"batch_invariant": True}),
    Fault("route-depends-on-the-place", "route",
          "promised, but another sigmoid behind the last whole vector (torch on the CPU)",
          OPS, MODEL_CANNOT, {"route": depends_on_the_place}, claims={"batch_invariant": True}),
    Fault("products-fall-back", "linear", "silent fallback to the reference", OPS, MODEL_CANNOT,
          {op: by_the_reference(op) for op in ("pack", "linear", "experts")}),
    Fault("attend-falls-back", "attend", "silent fallback to the reference", OPS, MODEL_CANNOT,
          {"attend": by_the_reference("attend")}),
]  # fmt: skip
