"""Compile a kernel as the run-time compiler would have for the same arguments, without a GPU.

What a kernel becomes depends on what Triton saw in its arguments: pointers and integers divisible
by 16, integers equal to 1, and on AMD whether a tensor lies within 2 GiB. A wrong guess changes
the code beyond recognition (byte loads in place of 16-byte ones). So nothing is guessed here:
Triton's own binder looks at example arguments. Tensors on the meta device will do, so even an
expert weight of many GiB costs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from glm_portable.errors import UsageError
from glm_portable.virtual.codegen.chips import Chip


@dataclass(frozen=True)
class Artifact:
    """A compiled kernel.

    assembly: AMD assembly or PTX. binary: the ELF file (hsaco or cubin). ttgir: Triton's own
    GPU-level form, which still knows the types of each product.
    shared: bytes of LDS (shared memory) of a workgroup, which is allocated at launch.
    fp_fusion: whether a product and a sum may become one instruction.
    """

    kernel: str
    chip: Chip
    num_warps: int
    shared: int
    fp_fusion: bool
    assembly: str
    binary: bytes
    ttgir: str


def compile_for(
    kernel: Any, example_args: Mapping[str, Any], chip: Chip, options: Mapping[str, Any]
) -> Artifact:
    """Compile `kernel` for `chip`.

    example_args: every parameter by name: tensors (meta ones too), numbers, constexprs.
    options: what the compiler and not the kernel is told: num_warps, num_stages, waves_per_eu...
    Raises UsageError for something that is not a compilable kernel, or for an unknown option.
    """
    if not isinstance(kernel, JITFunction):
        raise UsageError(
            f"{getattr(kernel, '__name__', kernel)!r} is a {type(kernel).__name__}, not a kernel "
            "of triton.jit; kernels decorated under TRITON_INTERPRET=1 cannot be compiled."
        )
    backend = make_backend(chip.target)
    try:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, given = bind(**example_args, **options)
        parsed, signature, constexprs, attributes = kernel._pack_args(
            backend, {"debug": False, **given}, bound, specialization, given
        )
    except (TypeError, KeyError) as error:
        raise UsageError(f"cannot bind the arguments of {kernel.__name__}: {error}") from error
    source = ASTSource(kernel, signature, constexprs, attributes)
    compiled = triton.compile(source, target=chip.target, options=parsed.__dict__)
    return Artifact(
        kernel=kernel.__name__,
        chip=chip,
        num_warps=compiled.metadata.num_warps,
        shared=compiled.metadata.shared,
        fp_fusion=parsed.enable_fp_fusion,
        assembly=compiled.asm["amdgcn" if chip.is_amd else "ptx"],
        binary=compiled.asm["hsaco" if chip.is_amd else "cubin"],
        ttgir=compiled.asm["ttgir"],
    )
