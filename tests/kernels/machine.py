"""The machines that the kernel tests run on, from Triton's interpreter to silicon."""

import os
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.backends._gpu import GpuOps
from glm_portable.backends.rocm import virtual
from glm_portable.kernels.launch import Launch
from glm_portable.kernels.target import Target
from glm_portable.virtual import interpreter
from glm_portable.virtual.cdna import launch_on
from glm_portable.virtual.compiler import settle

MACHINES = {
    "interpreter": ("interpreter-gfx942", "interpreter-gfx950"),
    "gfx942": ("gfx942",),
    "gfx950": ("gfx950",),
    "gpu": ("gpu",),
}
"""What each value of --machine stands for: the interpreter speaks both dialects of FP8."""


@dataclass(frozen=True)
class Machine:
    """name: for reports. ops: the backend on it; its parts are what a kernel's launcher takes."""

    name: str
    ops: GpuOps

    @property
    def target(self) -> Target:
        return self.ops.target

    @property
    def launch(self) -> Launch:
        return self.ops.launch

    @property
    def device(self) -> torch.device:
        return self.ops.device

    def put(self, x: Tensor) -> Tensor:
        """x where the kernels can reach it; the same tensor on machines that share the host's."""
        return x.to(self.device)


def check(choice: str) -> None:
    """Prepare this process for the machines of --machine, or raise pytest.UsageError."""
    if choice not in MACHINES:
        raise pytest.UsageError(f"--machine {choice} is not one of {', '.join(MACHINES)}.")
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if choice == "interpreter" and not interprets:
        raise pytest.UsageError(
            "tests/kernels on --machine interpreter (the default) needs TRITON_INTERPRET=1 before "
            "pytest starts; set it, choose --machine gfx942, gfx950 or gpu, or leave the kernels "
            "out with --ignore=tests/kernels."
        )
    if choice != "interpreter" and interprets:
        raise pytest.UsageError(
            f"--machine {choice} compiles the kernels, and TRITON_INTERPRET=1 interprets them: "
            "unset it."
        )
    if choice in ("gfx942", "gfx950"):
        settle()
    if choice == "gpu" and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"--machine gpu: torch {torch.__version__} sees no GPU; run this where there is one, "
            "or choose --machine gfx942 or gfx950."
        )


def machine(name: str) -> Machine:
    """The machine of that name; "gpu" is the current device of CUDA or ROCm."""
    if name == "gpu":
        backend = ops.load("auto")
        assert isinstance(backend, GpuOps), f"{backend.name=}"
        return Machine(f"{backend.target.arch} ({torch.cuda.get_device_name()})", backend)
    arch = name.removeprefix("interpreter-")
    launch = launch_on(arch) if name == arch else interpreter.launch
    return Machine(name, virtual(arch, launch))
