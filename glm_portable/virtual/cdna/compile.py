"""Offline compilation of a Triton kernel for a CDNA chip, as its run-time JIT would do it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from glm_portable.errors import UsageError
from glm_portable.virtual.cdna.chips import chip_named


@dataclass(frozen=True)
class Compiled:
    """text: the assembly. lds_bytes: of a workgroup. arguments: the values that are passed at run
    time, in order, without those compiled in."""

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
    """Specialise on the arguments by the JIT's own code (divisibility by 16, pointer ranges, ints
    equal to 1) and compile; no driver and no GPU take part.

    arguments: torch tensors on the CPU and scalars, in the kernel's order. options: further
    arguments by name, constexprs and compile options (num_warps, num_stages, ...).
    Raises UsageError for what is no JIT function, and for LDS beyond the chip's.
    """
    chip = chip_named(arch)
    if not isinstance(kernel, JITFunction):
        raise UsageError(
            f"a {type(kernel).__name__} cannot be simulated; pass the @triton.jit function (with "
            "TRITON_INTERPRET unset), not its autotuner or heuristics."
        )
    target = GPUTarget("hip", arch, 64)
    backend = make_backend(target)
    named = {"debug": False, **options}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, extra = binder(*arguments, **named)
    parsed, signature, constexprs, attributes = kernel._pack_args(
        backend, named, bound, specialization, extra
    )
    source = ASTSource(kernel, signature, constexprs, attributes)
    built = triton.compile(source, target=target, options=parsed.__dict__)
    lds_bytes = built.metadata.shared
    if lds_bytes > chip.lds_bytes:
        raise UsageError(
            f"{kernel.__name__} needs {lds_bytes} bytes of LDS; {arch} has {chip.lds_bytes}: use "
            "smaller tiles or fewer stages."
        )
    passed = tuple(v for k, v in bound.items() if signature[k] != "constexpr")
    text = built.asm["amdgcn"]
    return Compiled(kernel.__name__, arch, text, lds_bytes, parsed.num_warps, passed, bound)
