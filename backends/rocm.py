"""AMD MI300 and MI350: hipBLASLt for dense layers, Triton kernels for the rest.

MI300 (gfx942) multiplies FP8 of the FNUZ dialect: weights are converted when packed, exactly.
"""

import logging

import torch

from glm_portable.backends._gpu import GpuOps, check_torch
from glm_portable.errors import UsageError
from glm_portable.kernels.launch import Launch, jit
from glm_portable.kernels.target import Target

log = logging.getLogger(__name__)


def connect() -> GpuOps:
    """The current ROCm device. Raises UsageError without one, on a CUDA torch, or another chip."""
    found = {"rocm": torch.version.hip, "cuda": torch.version.cuda}
    check_torch("rocm", found, torch.cuda.is_available)
    device = torch.device("cuda", torch.cuda.current_device())
    # "gfx942:sramecc+:xnack-": the architecture, then its features.
    arch = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    ops = GpuOps("rocm", device, Target(arch), jit)
    _prefer_hipblaslt(arch)
    return ops


def _prefer_hipblaslt(arch: str) -> None:
    """Only hipBLASLt has row-wise FP8; left to itself torch may take rocBLAS."""
    chosen = torch.backends.cuda.preferred_blas_library("hipblaslt")
    if chosen != torch._C._BlasBackend.Cublaslt:  # torch's name for either vendor's
        raise UsageError(
            f"this PyTorch ({torch.__version__}) has no hipBLASLt for {arch} and would multiply "
            f"with {chosen}; install a ROCm build of PyTorch that has it."
        )
    log.info("Dense products on %s: hipBLASLt.", arch)


def virtual(arch: str, launch: Launch) -> GpuOps:
    """This backend with tensors on the host and kernels run by `launch`, as if on `arch`.

    Dense products are then torch's on the CPU: there is no vendor library to simulate.
    """
    return GpuOps(f"rocm on a simulated {arch}", torch.device("cpu"), Target(arch), launch)
