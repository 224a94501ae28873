"""The rule of `judge` for a call in a step of several sequences: all rows, then each sequence's.

A fault in the rows of one sequence would drown in those of the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.verify.call import Call, Tensors, perform
from glm_portable.verify.metrics import WORST_PLAIN, distance
from glm_portable.verify.suite.judge import Verdict, judge, numbers

PAGES = ("k_pages", "v_pages")


@dataclass(frozen=True)
class Yardsticks:
    """Results of plain PyTorch in the call's type, and of float64."""

    plain: Tensors
    exact: Tensors

    @classmethod
    def of(cls, call: Call, dtype: torch.dtype) -> "Yardsticks":
        with torch.inference_mode():
            plain, exact = (perform(call, reference, kind) for kind in (dtype, torch.float64))
            if call.op == "experts" and call.attributes.get("dynamic_activations"):
                plain = max(
                    plain, _nudged(call, dtype), key=lambda r: distance(r["y"], exact["y"]).error
                )
        return cls(plain, exact)


def _nudged(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    """The exact result of inputs that are off by a fraction of a rounding.

    What is computed within is rounded to codes there. The order of a sum, or one rounding more or
    less, decides which code a number falls on, and plain PyTorch may happen to take the exact ones:
    measured on few tokens, it was three times nearer to the exact result than this is.
    """
    x, generator = call.tensors["x"], torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    moved = x.double() * (1 + noise * torch.finfo(dtype).eps / 8)
    near = replace(call, tensors={**call.tensors, "x": moved})
    return {n: t.to(dtype) for n, t in perform(near, reference, torch.float64).items()}


def judge_call(call: Call, ours: Tensors, sticks: Yardsticks, query_ends: Sequence[int]) -> Verdict:
    """query_ends: where each sequence's rows end. The measures are those furthest off."""
    every = judge(call, ours, sticks.plain, sticks.exact)
    if call.op == "route" or "error" not in every.measures:
        return every
    seen, all_of = [every], len(query_ends)
    wrong: dict[int, list[str]] = {}
    for b, name, one in _by_sequence(call, ours, sticks, query_ends):
        seen.append(one)
        if one.findings:
            wrong.setdefault(b, []).extend(f"{name}: {finding}" for finding in one.findings)
    found = list(every.findings)
    if not found:
        found = [f"sequence {b + 1}, {text}" for b, texts in wrong.items() for text in texts]
    elif 0 < len(wrong) < all_of:
        found.append(f"of {all_of} sequences only {', '.join(str(b + 1) for b in wrong)}")
    worst = max(seen, key=lambda v: (bool(v.findings), excess(v)))
    return Verdict(tuple(found), worst.measures)


def excess(verdict: Verdict) -> float:
    """The error, in units of what is allowed."""
    measures = verdict.measures
    return measures["error"] / measures["allowed"] if "error" in measures else 0.0


def _by_sequence(
    call: Call, ours: Tensors, sticks: Yardsticks, query_ends: Sequence[int]
) -> Iterator[tuple[int, str, Verdict]]:
    """Of the pages, the slots that the sequence writes; not what cancels to nothing."""
    begins = (0, *query_ends[:-1])
    for b, (begin, end) in enumerate(zip(begins, query_ends, strict=True)):
        for name in sticks.exact:
            if len(query_ends) == 1 and name not in PAGES:
                continue
            sides = [side[name] for side in (ours, sticks.plain, sticks.exact)]
            if name in PAGES:
                slots = call.tensors["slots"].long()[begin:end]
                sides = [side.flatten(0, 1)[slots] for side in sides]
            else:
                sides = [side[begin:end] for side in sides]
            if distance(sides[1], sides[2]).error <= WORST_PLAIN:
                yield b, name, numbers(*sides)
