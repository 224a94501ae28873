"""Ops whose router takes the experts that another model's router took.

A flip by rounding is right, and parts two models in everything that follows. With the same experts
in all of them, what is left between them is arithmetic. The choices themselves are kept, to be
judged by themselves.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from glm_portable.ops import Ops
from glm_portable.verify.bisect.record import Arguments, Wrapped, host_copy
from glm_portable.verify.watch import Routing, replay


class Steered(Wrapped):
    """routings: inputs and own choices of the router, in order."""

    def __init__(self, ops: Ops) -> None:
        super().__init__(ops)
        self.routings: list[Routing] = []
        self._given: list[Tensor] = []

    def steer(self, choices: Iterable[Tensor]) -> None:
        """Experts (T, K) for the next calls of the router; it is free in those that follow."""
        self._given = list(choices)

    def perform(self, op: str, arguments: Arguments, run: Callable[[Arguments], Any]) -> Any:
        found = run(arguments)
        if op != "route":
            return found
        weights_TK, experts_TK = found
        self.routings.append(Routing(host_copy(arguments["x"]), host_copy(experts_TK)))
        if not self._given:
            return found
        x_TD, gate_ED, cfg = (arguments[name] for name in ("x", "gate", "cfg"))
        return replay(self._given.pop(0), x_TD, gate_ED, cfg, weights_TK, experts_TK)
