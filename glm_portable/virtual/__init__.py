"""Machines that are not here: each module says what it proves, and what it does not."""

import os

from glm_portable import ops
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.virtual.compiler import settle

GPUS = {"gfx942": "rocm", "gfx950": "rocm"}
"""Chips whose machine code can be executed here, and the backend that is for them."""
NPUS = {"Ascend910B1": "ascend", "Ascend910_9391": "ascend", "Ascend950PR_9599": "ascend"}
"""Chips whose operators can be simulated behind torch_npu."""
CHIPS = GPUS | NPUS
INTERPRETED = {f"interpreter-{chip}": backend for chip, backend in GPUS.items()}
"""The kernels in Triton's interpreter, as they would run on a chip: no compiler takes part."""

BANNER = """\
{chip} IS SIMULATED, no GPU takes part. Every Triton kernel is compiled for it, and its machine
code is executed on the CPU, one instruction after another: a token of the pocket model, the
smallest there is, takes seconds.
  proves          results of the compiled code, register and memory layouts, masks, races, waits
  does not prove  speed, driver and launch, graph capture, the vendor's own libraries
  not simulated   the dense products (attention projections, dense and shared MLPs, head) and
                  embedding, additions and rotation angles are torch's on the CPU"""
NPU_BANNER = """\
{chip} IS SIMULATED, no NPU takes part. The real torch_npu is loaded on stand-in libraries; its
operators are computed on the CPU from their documents, each call checked against torch_npu's own
shape inference and the documented limits.
  proves          names, types, shapes, layouts and limits of every operator call, the mathematics
  does not prove  rounding on the device, speed, graph capture, HCCL, memory
  not simulated   plain dense products, embedding, additions and rotation angles are torch's on
                  the CPU"""

INTERPRETED_BANNER = """\
{chip}: THE KERNELS ARE INTERPRETED, no GPU and no compiler takes part.
  proves          what the kernels' programs compute, in the chip's dialect of FP8
  does not prove  the compiled code, speed, driver and launch, the vendor's own libraries"""


def connect(backend: str, chip: str) -> Ops:
    """The backend on a simulated chip; "auto" is the one that is for the chip.

    Raises UsageError for a chip that is not simulated or not the backend's, without triton, and
    where kernels would be interpreted.
    """
    known = CHIPS | INTERPRETED
    if chip not in known:
        raise UsageError(f"no chip {chip!r} can be simulated; use one of {', '.join(known)}.")
    if backend not in ("auto", known[chip]):
        raise UsageError(
            f"backend {backend!r} has no simulated {chip}; use --backend {known[chip]}, or leave "
            "--virtual out."
        )
    if chip in NPUS:
        from glm_portable.virtual import npu

        return npu.connect(chip)
    if chip in INTERPRETED:
        return _interpreted(chip)
    settle()
    module = ops.module_of(CHIPS[chip])  # says so if triton is missing
    from glm_portable.virtual.cdna import launch_on

    machine: Ops = module.virtual(chip, launch_on(chip))
    return machine


def _interpreted(chip: str) -> Ops:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise UsageError(f"{chip} needs the environment variable TRITON_INTERPRET=1: set it.")
    module = ops.module_of(INTERPRETED[chip])  # says so if triton is missing
    from glm_portable.virtual import interpreter

    machine: Ops = module.virtual(chip.removeprefix("interpreter-"), interpreter.launch)
    return machine


def banner(chip: str) -> str:
    """What a person must know before reading anything that a simulated chip computed."""
    if chip in INTERPRETED:
        return INTERPRETED_BANNER.format(chip=chip)
    return (NPU_BANNER if chip in NPUS else BANNER).format(chip=chip)
