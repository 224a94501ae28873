"""Faults of any op's result: wrong size or sign, wrong rows, values that are not finite."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm_portable.verify.faults.fault import BOTH, OPS, Body, Fault, Level, Op

Change = Callable[[Tensor], Tensor]


def spoiled(change: Change, honest: Op, *arguments: Any, **named: Any) -> Any:
    """The first tensor that the op returns, changed: the norm, the queries, the weights."""
    result = honest(*arguments, **named)
    return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)


def of_first(change: Change) -> Body:
    return partial(spoiled, change)


def rows_shifted(x: Tensor) -> Tensor:
    """Each token gets its neighbour's result."""
    return x.roll(1, 0)


def last_row_lost(x: Tensor) -> Tensor:
    """Of several tokens the last is never written."""
    return torch.cat([x[:-1], torch.zeros_like(x[-1:])]) if len(x) > 1 else x


def late_rows_lost(x: Tensor) -> Tensor:
    """Rows beyond the largest size that a graph or a buffer was made for."""
    return torch.cat([x[:2048], torch.zeros_like(x[2048:])])


def columns_swapped(x: Tensor) -> Tensor:
    """Neighbouring pairs of the last dimension change places."""
    order = torch.arange(x.shape[-1], device=x.device) ^ 1
    return x[..., order.clamp(max=x.shape[-1] - 1)]


def without_nan(x: Tensor) -> Tensor:
    return x.nan_to_num(0.0, torch.inf, -torch.inf)


def clipped(x: Tensor) -> Tensor:
    """Infinite values become the largest finite ones."""
    top = torch.finfo(x.dtype).max
    return torch.where(x.isinf(), x.sign() * top, x)


CHANGES: list[tuple[str, Change, str]] = [
    ("zero", lambda x: x * 0, "a kernel that was never launched, or masked out"),
    ("doubled", lambda x: x * 2, "scale of FNUZ codes (vllm PR#12134)"),
    ("halved", lambda x: x / 2, "scale of FNUZ codes, the other way"),
    ("negated", lambda x: -x, "a sign in the epilogue"),
    ("one-percent", lambda x: x * 1.01, "a constant that is nearly right"),
    ("rows-shifted", rows_shifted, "a row index off by one"),
    ("last-row-lost", last_row_lost, "the edge of the last block (aiter#2059: 17 tokens)"),
]
OP_NAMES = ("linear", "rms_norm", "silu_mul", "rope_store", "attend", "route", "experts")

WEAK = {"rope_store", "route", "experts"}
"""Ops whose result is one part of many of what a layer adds, or a score of many."""


def levels(op: str, change: str) -> tuple[frozenset[Level], str]:
    if change == "one-percent" and op in WEAK:
        return OPS, "a layer's own rounding hides one percent of a part of it"
    return BOTH, ""


CHANGED = [
    Fault(f"{op}-{name}", op, stands_for, *levels(op, name), {op: of_first(change)})
    for op in OP_NAMES
    for name, change, stands_for in CHANGES
] + [
    Fault(
        f"{op}-nan-swallowed", op, "NaN turned into 0 hides a broken layer (ik_llama.cpp#1045)",
        OPS, "the pocket model computes no NaN", {op: of_first(without_nan)},
    )
    for op in OP_NAMES
] + [
    Fault(
        f"{op}-infinity-clipped", op, "saturating conversion to BF16",
        OPS, "the pocket model computes nothing infinite", {op: of_first(clipped)},
    )
    for op in ("linear", "silu_mul")
] + [
    Fault(
        f"{op}-columns-swapped", op, "a layout of pairs not undone",
        bodies={op: of_first(columns_swapped)},
    )
    for op in ("linear", "experts", "attend")
]  # fmt: skip

LATE = [
    Fault(
        f"{op}-late-rows-lost",
        op,
        "faults beyond 2048 tokens (vllm#56037)",
        OPS,
        "the pocket model's prompt is short",
        {op: of_first(late_rows_lost)},
    )
    for op in OP_NAMES
]
RESULTS = [*CHANGED, *LATE]
