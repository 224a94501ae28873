"""A functional simulator of AMD CDNA3 / CDNA4 (gfx942, gfx950) for Triton kernels.

    from glm_portable.virtual import cdna
    cdna.launch(kernel, (64,), x, y, n, BLOCK=256, arch="gfx950")

compiles the kernel offline and executes its assembly on CPU tensors. docs/cdna-simulator.md says
what that proves and what it does not.
"""

from glm_portable.virtual.cdna.chips import CHIPS
from glm_portable.virtual.cdna.compile import Compiled, compile_kernel
from glm_portable.virtual.cdna.faults import (
    Fault,
    Hang,
    LdsOutOfBounds,
    LdsRace,
    MissingWait,
    OutOfBounds,
    UndefinedValue,
    UnsupportedInstruction,
    UnwrittenLds,
)
from glm_portable.virtual.cdna.launcher import execute, launch, launch_on
from glm_portable.virtual.cdna.machine import Statistics

__all__ = [
    "CHIPS",
    "Compiled",
    "Fault",
    "Hang",
    "LdsOutOfBounds",
    "LdsRace",
    "MissingWait",
    "OutOfBounds",
    "Statistics",
    "UndefinedValue",
    "UnsupportedInstruction",
    "UnwrittenLds",
    "compile_kernel",
    "execute",
    "launch",
    "launch_on",
]
