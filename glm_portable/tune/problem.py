"""One product on the device: its inputs, a launch with any tile, and whether a result is right."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from glm_portable.kernels.align import align
from glm_portable.kernels.grouped_gemm import Matrices, grouped_gemm
from glm_portable.kernels.launch import Launch
from glm_portable.kernels.quantize import quantize
from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile
from glm_portable.tune.shapes import Job
from glm_portable.verify.metrics import faults

SAMPLE = 64
"""Rows of a result that are compared; all of a large product in float64 would take minutes."""


class Machine(Protocol):
    """What of a GPU backend the tuner needs."""

    name: str
    device: torch.device
    target: Target
    launch: Launch


class Problem:
    """Random weights and rows of one job; experts chosen at random among all of the model's.

    Under expert parallelism most choices are for other ranks and belong to no tile here.
    """

    def __init__(self, job: Job, machine: Machine, seed: int = 0) -> None:
        self.job, self.machine, shape = job, machine, job.shape
        random = torch.Generator(machine.device).manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random, device=machine.device, dtype=torch.bfloat16)

        self.rows = job.tokens * shape.chosen
        self.a, self.a_scale = normal(self.rows if job.down else job.tokens, job.k), None
        weights = normal(shape.experts, job.n, job.k).mul_(job.k**-0.5)
        self.matrices = Matrices(weights)
        if job.dtype != "bfloat16":
            self.matrices = _fp8(weights, machine.target)
        if job.dtype == "fp8":
            self.a, self.a_scale = quantize(machine.launch, machine.target, self.a)
        scores = torch.rand(job.tokens, shape.all_experts, generator=random, device=machine.device)
        chosen = scores.topk(shape.chosen, dim=-1).indices.to(torch.int32)
        # Other ranks' experts get the number that `align` gives to no tile.
        self.experts = chosen.where(chosen < shape.experts, shape.experts).contiguous()
        self.routing = None
        if job.down:
            self.routing = torch.rand(self.rows, generator=random, device=machine.device) + 0.5

    def prepare(self, tile: Tile) -> Callable[[], Tensor]:
        """A call that starts the product with this tile; sorting the rows is not part of it."""
        job, launch = self.job, self.machine.launch
        alignment = align(launch, self.experts, job.shape.experts, tile.block_m)
        return lambda: grouped_gemm(
            launch, self.a, self.a_scale, self.matrices, alignment, tile, torch.bfloat16,
            self.rows, self.routing,
        )  # fmt: skip

    def check(self, result: Tensor) -> list[str]:
        """What is wrong with a result by the rule of `verify.metrics`, on some of its rows."""
        flat = self.experts.flatten()
        ours = (flat < self.job.shape.experts).nonzero().flatten()
        if len(ours) == 0:
            return []
        rows = ours[:: -(-len(ours) // SAMPLE)]
        exact, plain = (self._rows(rows, dtype) for dtype in (torch.float64, torch.bfloat16))
        return faults(result[rows].cpu(), plain.cpu(), exact.cpu())

    def _rows(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """These rows of the result in plain PyTorch."""
        share = self.rows // len(self.a)
        found = []
        for row in rows.tolist():
            expert = int(self.experts.flatten()[row])
            a, b = self.a[row // share].to(dtype), self.matrices.data[expert].to(dtype)
            if self.a_scale is not None:
                a = (a.double() * self.a_scale.flatten()[row // share].double()).to(dtype)
            if self.matrices.scale is not None:
                b = (b.double() * self.matrices.scale[expert].double()).to(dtype)
            y = a @ b.T
            found.append(y if self.routing is None else y * self.routing[row].to(dtype))
        return torch.stack(found)


def _fp8(weights: Tensor, target: Target) -> Matrices:
    """FP8 with a scale a channel, one expert after the other: all in float32 may not fit."""
    data = torch.empty(weights.shape, dtype=target.fp8, device=weights.device)
    scale = torch.empty(*weights.shape[:2], 1, dtype=torch.float32, device=weights.device)
    for w, codes, unit in zip(weights, data, scale, strict=True):
        unit.copy_(w.float().abs().amax(-1, keepdim=True) / target.fp8_top)
        codes.copy_((w.float() / unit).to(target.fp8))
    return Matrices(data, scale)
