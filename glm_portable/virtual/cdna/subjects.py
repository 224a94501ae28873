"""Launches of this project's kernels at tiny shapes, for the mutation test and the benchmark."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from glm_portable.backends import rocm
from glm_portable.backends._gpu import GpuOps
from glm_portable.config import ModelConfig
from glm_portable.kernels import norm
from glm_portable.kernels.launch import Argument, Grid
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.virtual.cdna.compile import Compiled, compile_kernel
from glm_portable.virtual.cdna.launcher import launch

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@dataclass(frozen=True)
class Subject:
    """A compiled kernel with arguments, as it was about to be started."""

    name: str
    compiled: Compiled
    grid: Grid

    def fresh(self) -> Compiled:
        """With copies of the arguments, which one execution may write."""
        arguments = self.compiled.arguments
        copies = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
        return replace(self.compiled, arguments=copies)


class _Keeper:
    """A `kernels.launch.Launch` that runs every kernel, and keeps the first of one name."""

    def __init__(self, name: str, kernel: str, arch: str) -> None:
        self._name, self._kernel, self._arch = name, kernel, arch
        self.kept: Subject | None = None

    def __call__(
        self,
        kernel: Any,
        grid: Grid,
        *arguments: Argument,
        options: Mapping[str, int],
        **constexprs: Any,
    ) -> None:
        named = {**options, **constexprs}
        if kernel.__name__ == self._kernel and self.kept is None:
            copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
            compiled = compile_kernel(kernel, copies, self._arch, named)
            self.kept = Subject(self._name, compiled, grid)
        launch(kernel, grid, *arguments, arch=self._arch, **named)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _experts(kind: torch.dtype) -> Callable[[GpuOps], object]:
    def run(ops: GpuOps) -> object:
        d, f, e, tokens = 288, 48, 2, 5
        packed = []
        for seed, shape in ((1, (e, 2 * f, d)), (2, (e, d, f))):
            data = _normal(*shape, seed=seed)
            scale = torch.full((e, shape[1], 1), 0.02) if kind == FP8 else None
            packed.append(ops.pack(Weight(data.to(kind), BF16, scale, None, kind == FP8)))
        chosen = torch.tensor([[0], [1], [1], [0], [1]], dtype=torch.int32)
        x = _normal(tokens, d, seed=3).to(BF16)
        gate_up, down = packed
        return ops.experts(x, gate_up, down, torch.ones(tokens, 1), chosen)

    return run


def _decode(ops: GpuOps) -> object:
    step = Step.build([(70, 1, [4, 1, 3, 2, 0]), (19, 1, [6, 5])], 16, ops.device)
    keys, values = (_normal(8, 16, 1, 64, seed=s).to(BF16) for s in (1, 2))
    cache = KVCache(keys, values)
    return ops.attend(_normal(2, 12, 64, seed=3).to(BF16), cache, step, 0.125)


def _norm(ops: GpuOps) -> object:
    x, residual = (_normal(2, 1500, seed=s).to(BF16) for s in (1, 2))
    weight = _normal(1500, seed=3).to(BF16)
    return norm.rms_norm_quantize(ops.launch, ops.target, x, weight, 1e-5, residual)


def _route(ops: GpuOps) -> object:
    path = resources.files("glm_portable.pocket") / "config.json"
    cfg = ModelConfig.from_dict(json.loads(path.read_text()))
    experts, width = cfg.n_routed_experts, cfg.hidden_size
    x, gate = _normal(5, width, seed=1).to(BF16), _normal(experts, width, seed=2) / 14
    return ops.route(x, gate, 7 + _normal(experts, seed=3) / 10, cfg)


SUBJECTS: dict[str, tuple[str, Callable[[GpuOps], object]]] = {
    "grouped GEMM bf16": ("grouped_gemm_kernel", _experts(BF16)),
    "grouped GEMM fp8": ("grouped_gemm_kernel", _experts(FP8)),
    "attention decode": ("attend_kernel", _decode),
    "RMS norm, quantised": ("rms_norm_kernel", _norm),
    "router: product": ("gate_kernel", _route),
    "router: choice": ("choose_kernel", _route),
}
"""By name, the kernel and an op that starts it."""


def subject(name: str, arch: str) -> Subject:
    """Compile the kernel, after running what comes before it."""
    kernel, run = SUBJECTS[name]
    keeper = _Keeper(name, kernel, arch)
    run(rocm.virtual(arch, keeper))
    assert keeper.kept is not None, f"{name} starts no {kernel}"
    return keeper.kept
