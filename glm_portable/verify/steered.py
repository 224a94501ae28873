"""Ops whose router takes the experts that another model's router took.

A flip by rounding is right, and parts two models in everything that follows. With the same experts
in all of them, what is left between them is arithmetic. The choices themselves are kept, to be
judged by themselves.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.ops import Ops
from glm_portable.verify.record import Arguments, Wrapped, host_copy
from glm_portable.verify.watch import Routing


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
        given_TK = self._given.pop(0).to(experts_TK)
        return _steered(weights_TK, experts_TK, given_TK, arguments)


def _steered(
    weights_TK: Tensor, experts_TK: Tensor, given_TK: Tensor, arguments: Arguments
) -> tuple[Tensor, Tensor]:
    """The router's own weights, and those of the given experts where it took others."""
    flipped = (experts_TK.sort(-1).values != given_TK.sort(-1).values).any(-1, keepdim=True)
    if not flipped.any():
        return weights_TK, experts_TK
    of_given_TK = weights_of(given_TK, arguments["x"], arguments["gate"], arguments["cfg"]).to(
        weights_TK.dtype
    )
    return weights_TK.where(~flipped, of_given_TK), experts_TK.where(~flipped, given_TK)


def weights_of(experts_TK: Tensor, x_TD: Tensor, gate_ED: Tensor, cfg: ModelConfig) -> Tensor:
    """What the router gives these experts, (T, K), in float32 at least."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    scores = F.linear(x_TD.to(wide), gate_ED.to(wide)).sigmoid().gather(1, experts_TK.long())
    if cfg.norm_topk_prob:
        scores = scores / (scores.sum(-1, keepdim=True) + 1e-20)
    return scores * cfg.routed_scaling_factor
