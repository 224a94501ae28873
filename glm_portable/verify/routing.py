"""Whether a router chose other experts than the exact one, and whether rounding explains it.

A choice is by score + bias, and two experts can change places when the errors of their scores add
up to what lies between them. So a flip is explained if the float64 margin of the token (last chosen
less first not chosen) is within twice the error that is allowed: `K` times the worst of plain
PyTorch's. That alone would excuse a wrong router behind a noisy input. So it must be right on the
input that it got as well, where only float32 rounding is allowed.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.verify.metrics import K
from glm_portable.verify.watch import Routing


class Gate(Protocol):
    """Of a `model.MoE`, what chooses experts."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def gate(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor: ...


@dataclass(frozen=True)
class Flips:
    """flipped_T: tokens whose experts are not the exact ones. unexplained_T: of these, those that
    rounding does not explain."""

    flipped_T: Tensor
    unexplained_T: Tensor


def flips(actual: Routing, plain: Routing, exact: Routing, moe: Gate) -> Flips:
    """moe: the exact one, its gate and bias in float64."""
    margin_T = margin(exact.x_TD, moe)
    return flips_by(actual, exact.experts_TK, margin_T, noise(plain, exact, moe), moe)


def noise(plain: Routing, exact: Routing, moe: Gate) -> float:
    """How far plain PyTorch is from the exact scores that experts are chosen by, at most."""
    return (_choice(plain.x_TD, moe) - _choice(exact.x_TD, moe)).abs().max().item()


def flips_by(actual: Routing, exact_TK: Tensor, margin_T: Tensor, noise: float, moe: Gate) -> Flips:
    """As `flips`, by what was kept of the exact model: its choice and margin, and the noise."""
    rounding = (_choice(actual.x_TD, moe, torch.float32) - _choice(actual.x_TD, moe)).abs().max()
    own_T = _best(_choice(actual.x_TD, moe), moe.config)
    wrong_T = _differ(actual.experts_TK, own_T)
    wrong_T &= margin(actual.x_TD, moe) > 2 * K * rounding.item()
    flipped_T = _differ(actual.experts_TK, exact_TK)
    far_T = flipped_T & (margin_T > 2 * K * noise)
    return Flips(flipped_T | wrong_T, far_T | wrong_T)


def _choice(x_TD: Tensor, moe: Gate, dtype: torch.dtype = torch.float64) -> Tensor:
    """Scores that experts are chosen by, (T, E) float64, computed in `dtype`."""
    x, gate, bias = (t.to("cpu", dtype) for t in (x_TD, moe.gate, moe.bias))
    return ((x @ gate.T).sigmoid() + bias).double()


def _best(choice_TE: Tensor, config: ModelConfig) -> Tensor:
    return choice_TE.topk(config.num_experts_per_tok, dim=-1).indices


def margin(x_TD: Tensor, moe: Gate) -> Tensor:
    """(T,) how far the last chosen expert is ahead of the first that is not."""
    k, count = moe.config.num_experts_per_tok, moe.config.n_routed_experts
    if k == count:
        return torch.full((len(x_TD),), float("inf"), dtype=torch.float64)
    best = _choice(x_TD, moe).topk(k + 1, dim=-1).values
    return best[:, -2] - best[:, -1]


def _differ(a_TK: Tensor, b_TK: Tensor) -> Tensor:
    """(T,) whether the sets differ; their order means nothing to the model."""
    return (a_TK.long().sort(-1).values != b_TK.long().sort(-1).values).any(-1)
