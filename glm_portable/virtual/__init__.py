"""Machines that are not here: each module says what it proves, and what it does not."""

from glm_portable import ops
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.virtual.compiler import settle

CHIPS = {"gfx942": "rocm", "gfx950": "rocm"}
"""Chips whose machine code can be executed here, and the backend that is for them."""

BANNER = """\
{chip} IS SIMULATED, no GPU takes part. Every Triton kernel is compiled for it, and its machine
code is executed on the CPU, one instruction after another: a token of the pocket model, the
smallest there is, takes seconds.
  proves          results of the compiled code, register and memory layouts, masks, races, waits
  does not prove  speed, driver and launch, graph capture, the vendor's own libraries
  not simulated   the dense products (attention projections, dense and shared MLPs, head) and
                  embedding, additions and rotation angles are torch's on the CPU"""


def connect(backend: str, chip: str) -> Ops:
    """The backend on a simulated chip; "auto" is the one that is for the chip.

    Raises UsageError for a chip that is not simulated or not the backend's, without triton, and
    where kernels would be interpreted.
    """
    if chip not in CHIPS:
        raise UsageError(f"no chip {chip!r} can be simulated; use one of {', '.join(CHIPS)}.")
    if backend not in ("auto", CHIPS[chip]):
        raise UsageError(
            f"backend {backend!r} has no simulated {chip}; use --backend {CHIPS[chip]}, or leave "
            "--virtual out."
        )
    settle()
    module = ops.module_of(CHIPS[chip])  # says so if triton is missing
    from glm_portable.virtual.cdna import launch_on

    machine: Ops = module.virtual(chip, launch_on(chip))
    return machine


def banner(chip: str) -> str:
    """What a person must know before reading anything that a simulated chip computed."""
    return BANNER.format(chip=chip)
