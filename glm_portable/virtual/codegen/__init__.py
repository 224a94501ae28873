"""Compile Triton kernels for chips that are not here, and read what the compiler made.

    from glm_portable.virtual.codegen import Expectation, gate, inspect

    metrics = inspect(kernel, {"x_ptr": x, "n": 4096, "BLOCK": 1024}, "gfx942", {"num_warps": 4})
    for finding in gate(metrics, Expectation(dialects={"fp8"}, valu_per_matrix=1.0)):
        print(finding)

Needs neither a GPU nor a driver: the triton package holds both vendors' compilers. It proves that
a kernel compiles, and into what: registers, spills, shared memory, occupancy, the matrix
instruction and what surrounds it in the hot loop. It says nothing about results or about speed.
`python -m glm_portable.virtual.codegen` does it for every kernel of this repository.
"""

from glm_portable.virtual.chips import CHIPS, Chip
from glm_portable.virtual.codegen.expectation import Expectation, gate
from glm_portable.virtual.codegen.inspecting import inspect
from glm_portable.virtual.codegen.metrics import Loop, Metrics
from glm_portable.virtual.compiling import Artifact, compile_for

__all__ = [
    "CHIPS",
    "Artifact",
    "Chip",
    "Expectation",
    "Loop",
    "Metrics",
    "compile_for",
    "gate",
    "inspect",
]
