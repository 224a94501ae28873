"""What ran when a backend was asked: kernels, torch's products, operators beyond torch's own, and
the reference's bodies, by whatever way they were reached."""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any, cast

import torch

from glm_portable.backends import reference
from glm_portable.kernels.launch import observed as counted
from glm_portable.ops import Ops
from glm_portable.verify.call import OPS
from glm_portable.verify.watch import PRODUCTS, TORCHS_OWN, Operators

BODIES: dict[CodeType, str] = {
    getattr(reference, name).__code__: name for name in (*OPS, "rope", "store", "choose")
}
"""The reference's functions by their code, which an import under another name does not change."""


@dataclass
class Observed:
    """kernels: what ran and how often: launches of `kernels/`, "torch.<product>" for torch's matrix
    products, "<library>.<operator>" for operators of others. bodies: the reference's functions."""

    kernels: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)

    def names(self) -> dict[str, int]:
        """All of it, for a report."""
        bodies = {f"reference.{name}": count for name, count in self.bodies.items()}
        return dict(sorted((self.kernels | bodies).items()))


@contextmanager
def observing(ops: Ops) -> Iterator[tuple[Ops, Observed]]:
    """(the backend, to be used within, what it was seen to run)."""
    seen = Observed()
    with Operators(partial(_operator, Counter())):
        torch.empty(0)  # at the first operator torch imports a thousand modules: not while tracing
    if hasattr(ops, "launch"):
        ops = copy.copy(ops)
        launch, seen.kernels = counted(cast(Any, ops).launch)
        cast(Any, ops).launch = launch
    with Operators(partial(_operator, seen.kernels)), _entered(seen.bodies):
        yield ops, seen


def is_reference(ops: Ops, op: str) -> bool:
    """Whether a backend's function is the reference's own, by import."""
    body = getattr(ops, op)
    code = getattr(getattr(body, "__func__", body), "__code__", None)
    return code is getattr(reference, op).__code__


@contextmanager
def _entered(seen: Counter[str]) -> Iterator[None]:
    """Counts the reference's bodies as this thread enters them."""
    before = sys.gettrace()

    def on_call(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if name := BODIES.get(frame.f_code):
            seen[name] += 1
        return cast(Any, before)(frame, event, argument) if before is not None else None

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _operator(seen: Counter[str], library: str, name: str) -> None:
    """Counts torch's products and the operators of other libraries."""
    if library == "aten":
        if name in PRODUCTS:
            seen[f"torch.{name}"] += 1
    elif library not in TORCHS_OWN and not name.startswith("_is_"):
        seen[f"{library}.{name}"] += 1
