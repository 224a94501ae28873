"""Muon for the matrices, AdamW for the rest, and a running average of the weights."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

MUON_RATE, ADAM_RATE = 4e-3, 3e-3
WEIGHT_DECAY = 0.05
MOMENTUM, BETAS = 0.95, (0.9, 0.95)
CLIP = 1.0


def orthogonalize(x: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: five Newton-Schulz steps in BF16.

    The quintic iteration of Muon (Jordan et al. 2024), over the last two dimensions.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = y @ y.mT
        y = 3.4445 * y + (-4.7750 * a + 2.0315 * (a @ a)) @ y
    out: Tensor = (y.mT if tall else y).to(x.dtype)
    return out


def uses_muon(name: str, parameter: nn.Parameter) -> bool:
    """Matrices between hidden states; embedding, head and router are no such maps."""
    lookups = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")
    return parameter.dim() >= 2 and not name.endswith(lookups)


class Optimiser:
    """One step for all parameters of a network; its state can be saved."""

    def __init__(self, network: nn.Module) -> None:
        named = list(network.named_parameters())
        self.muon = {name: p for name, p in named if uses_muon(name, p)}
        self.adam = {name: p for name, p in named if not uses_muon(name, p)}
        self.momentum = {name: torch.zeros_like(p) for name, p in self.muon.items()}
        self.first = {name: torch.zeros_like(p) for name, p in self.adam.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.adam.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update with the learning rates times `scale`, and clear the gradients."""
        self.steps += 1
        for name, p in self.muon.items():
            self._muon_step(name, p, MUON_RATE * scale)
        norm = math.sqrt(sum(float(_gradient(p).square().sum()) for p in self.adam.values()))
        clip = min(1.0, CLIP / (norm + 1e-6))
        for name, p in self.adam.items():
            self._adam_step(name, p, ADAM_RATE * scale, clip)

    def _muon_step(self, name: str, p: nn.Parameter, rate: float) -> None:
        gradient, momentum = _gradient(p), self.momentum[name]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        update = torch.lerp(gradient, momentum, MOMENTUM)
        if name.endswith("gate_up_proj"):  # two maps in one tensor: gate and up
            update = torch.unflatten(update, -2, (2, -1))
        size = 0.2 * math.sqrt(max(update.shape[-2:]))
        p.mul_(1 - rate * WEIGHT_DECAY)
        p.add_(orthogonalize(update).reshape(p.shape), alpha=-rate * size)
        p.grad = None

    def _adam_step(self, name: str, p: nn.Parameter, rate: float, clip: float) -> None:
        gradient, (beta1, beta2) = _gradient(p) * clip, BETAS
        first, second = self.first[name], self.second[name]
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        mean = first / (1 - beta1**self.steps)
        deviation = (second / (1 - beta2**self.steps)).sqrt() + 1e-8
        p.addcdiv_(mean, deviation, value=-rate)
        p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "momentum": self.momentum,
            "first": self.first,
            "second": self.second,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momentum, self.first = state["momentum"], state["first"]
        self.second, self.steps = state["second"], state["steps"]


def _gradient(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad


class Average:
    """A running mean of a network's tensors: a little better than any single step's."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors = {name: t.clone() for name, t in _tensors(network)}

    @torch.no_grad()
    def update(self, network: nn.Module, keep: float) -> None:
        for name, t in _tensors(network):
            self.tensors[name].lerp_(t, 1 - keep)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, t.detach()) for name, t in network.state_dict().items())
