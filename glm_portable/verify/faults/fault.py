"""What a fault is, and a backend that has one.

A fault takes the place of an op of an honest backend, and usually calls that op with wrong inputs
or spoils what it returns: so it can be put into any backend, and nothing else changes.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

from glm_portable.model import Model
from glm_portable.ops import Ops

Level = Literal["ops", "model"]
LEVELS: tuple[Level, ...] = ("ops", "model")
BOTH: frozenset[Level] = frozenset(LEVELS)
OPS: frozenset[Level] = frozenset({"ops"})
MODEL: frozenset[Level] = frozenset({"model"})

Op = Callable[..., Any]
Body = Callable[..., Any]
"""A function of the honest op and of the arguments of its call."""


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong in the field, or could.

    op: where it sits: an op, "pack", or a part of the model. stands_for: what it is like in the
    real world. levels: where it must be noticed. why: the reason, where that is not both
    (where it is neither, the fault is known to escape).
    bodies: what takes the place of an op. spoil: what is done to a model that has been loaded.
    claims: attributes that the backend has or not. format: of the weights at the model level;
    "fp8" for what only quantised weights show.
    """

    name: str
    op: str
    stands_for: str
    levels: frozenset[Level] = BOTH
    why: str = ""
    bodies: Mapping[str, Body] = field(default_factory=dict)
    spoil: Callable[[Model], None] | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)
    format: str = "bf16"

    def on(self, ops: Ops) -> Ops:
        """The backend with this fault in its ops."""
        return faulty(ops, self.bodies, self.claims)

    def reaches(self, op: str) -> bool:
        """Whether checks of an op can notice it."""
        return any(op in REACH[body] for body in self.bodies)


REACH: Mapping[str, frozenset[str]] = {
    "pack": frozenset({"linear", "experts"}),
    
    **{op: frozenset({op}) for op in
       ("linear", "rms_norm", "silu_mul", "rope_store", "attend", "route", "experts")},
}  # fmt: skip
"""Which ops' checks run an op: weights are packed before others multiply by them."""


class Faulty:
    """`Ops` some of whose functions are other than those of the backend they stand for."""

    def __init__(self, honest: Ops, bodies: Mapping[str, Body], claims: Mapping[str, Any]) -> None:
        self._honest: Any = honest
        self._bodies, self._claims = bodies, claims

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is just being made
            raise AttributeError(name)
        if name in self._claims:
            return self._claims[name]
        op, body = getattr(self._honest, name), self._bodies.get(name)
        return op if body is None else partial(body, op)

    @property
    def launch(self) -> Any:
        """What the honest backend starts kernels with, if it has such: observers replace it."""
        return self._honest.launch

    @launch.setter
    def launch(self, launch: Any) -> None:
        self._honest = copy.copy(self._honest)
        self._honest.launch = launch


def faulty(ops: Ops, bodies: Mapping[str, Body], claims: Mapping[str, Any] | None = None) -> Ops:
    """The backend with these in place of its own ops and attributes."""
    return cast(Ops, Faulty(ops, bodies, claims or {}))
