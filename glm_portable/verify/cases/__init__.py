"""The suite's cases: every op of the dispatch interface on inputs that models and their bugs have.

Every number is one that BF16 holds, so one case runs in float64, float32 and BF16 on equal inputs.
Uniform noise alone would not do: outlier channels, large router biases, crowded and empty experts,
widths that are no power of two and pages out of order are where implementations went wrong. A case
can be made from any seed, and every seed is a fair one: no inputs on which an honest
implementation may differ from the exact result by more than rounding explains.
"""

import hashlib
import json
from collections.abc import Iterable

import torch

from glm_portable.verify.cases import attention, experts, linear, norm, rare, rope, route
from glm_portable.verify.cases.attention import STEPS
from glm_portable.verify.cases.case import Case, cost

__all__ = ["CASES", "EVERYTHING", "STEPS", "Case", "cost", "digest", "named", "small_enough"]

EVERYTHING = [
    case
    for module in (linear, experts, attention, norm, rope, route, rare)
    for case in module.CASES
]
CASES = [case for case in EVERYTHING if not case.full]
"""Those that every machine can afford."""


SIMULATED = 205_000
"""Multiplications that a simulated GPU gets through in seconds."""


def small_enough(case: Case, seed: int = 0) -> bool:
    """For a machine that executes one instruction after the other."""
    return cost(case.call(seed)) <= SIMULATED


def digest(cases: Iterable[Case], seed: int = 0) -> str:
    """Of all that the cases ask: names, attributes and inputs. The same on every machine."""
    found = hashlib.sha256()
    for case in cases:
        call = case.call(seed)
        parts = [str(case), json.dumps(dict(call.attributes), sort_keys=True)]
        for name, tensor in sorted(call.tensors.items()):
            parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
            found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        found.update("\n".join(parts).encode())
    return found.hexdigest()


def named(op: str, name: str) -> Case:
    found: Case = next(c for c in EVERYTHING if (c.op, c.name) == (op, name))
    return found
