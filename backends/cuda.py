"""NVIDIA Hopper and Blackwell: cuBLASLt for dense layers, Triton kernels for the rest."""

import torch

from glm_portable.backends._gpu import GpuOps, check_torch
from glm_portable.kernels.launch import jit
from glm_portable.kernels.target import Target


def connect() -> GpuOps:
    """The current CUDA device. Raises UsageError without one, on a ROCm torch, or before Hopper."""
    found = {"cuda": torch.version.cuda, "rocm": torch.version.hip}
    check_torch("cuda", found, torch.cuda.is_available)
    major, minor = torch.cuda.get_device_capability()
    device = torch.device("cuda", torch.cuda.current_device())
    return GpuOps("cuda", device, Target(f"sm_{major}{minor}"), jit)
