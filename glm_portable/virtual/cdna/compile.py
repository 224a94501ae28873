"""From a kernel and its arguments to a program and the values it is given."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm_portable.errors import UsageError
from glm_portable.virtual import chips
from glm_portable.virtual.cdna.chips import chip_named
from glm_portable.virtual.compiling import Artifact, Specialisation, specialise


@dataclass(frozen=True)
class Compiled:
    """text: the assembly. lds_bytes: of a workgroup. arguments: the values that are passed at run
    time, in order, without those compiled in. bound: every parameter's value by name."""

    name: str
    arch: str
    text: str
    lds_bytes: int
    waves: int
    arguments: tuple[Any, ...]
    bound: Mapping[str, Any]


def compile_kernel(
    kernel: Any, arguments: Sequence[Any], arch: str, options: Mapping[str, Any]
) -> Compiled:
    """Compile as for a launch with these arguments; code once made is kept in the process.

    arguments: torch tensors on the CPU and scalars, in the kernel's order. options: further
    arguments by name, constexprs and compile options (num_warps, num_stages, ...).
    Raises UsageError for what is no JIT function, and for LDS beyond the chip's.
    """
    chip_named(arch)
    specialisation, bound = specialise(kernel, arguments, options, chips.chip(arch))
    built = _built(specialisation)
    limit = built.chip.shared_limit
    if built.shared > limit:
        raise UsageError(
            f"{built.kernel} needs {built.shared} bytes of LDS; {arch} has {limit}: use smaller "
            "tiles or fewer stages."
        )
    signature = specialisation.signature
    passed = tuple(value for name, value in bound.items() if signature[name] != "constexpr")
    return Compiled(
        built.kernel, arch, built.assembly, built.shared, built.num_warps, passed, bound
    )


@functools.lru_cache(maxsize=512)
def _built(specialisation: Specialisation) -> Artifact:
    return specialisation.compile()
