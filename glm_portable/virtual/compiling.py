"""Compile a kernel as the run-time compiler would have for the same arguments, without a GPU.

What a kernel becomes depends on what Triton saw in its arguments: pointers and integers divisible
by 16, integers equal to 1, and on AMD whether a tensor lies within 2 GiB. A wrong guess changes
the code beyond recognition (byte loads in place of 16-byte ones). So nothing is guessed here:
Triton's own binder looks at example arguments. Tensors on the meta device will do, so even an
expert weight of many GiB costs nothing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from glm_portable.errors import UsageError
from glm_portable.virtual.chips import Chip


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


@dataclass(frozen=True)
class Specialisation:
    """What a kernel is compiled for. key: equal where the code is. signature: each parameter's
    type, "constexpr" for one compiled in; for ASTSource, like constexprs and attributes."""

    kernel: Any
    chip: Chip
    key: str
    signature: Mapping[str, Any] = field(compare=False, repr=False)
    constexprs: Mapping[Any, Any] = field(compare=False, repr=False)
    attributes: Mapping[Any, Any] = field(compare=False, repr=False)
    options: Any = field(compare=False, repr=False)

    def compile(self) -> Artifact:
        source = ASTSource(self.kernel, self.signature, self.constexprs, self.attributes)
        options = self.options.__dict__
        compiled = triton.compile(source, target=self.chip.target, options=options)
        is_amd = self.chip.is_amd
        return Artifact(
            kernel=self.kernel.__name__,
            chip=self.chip,
            num_warps=compiled.metadata.num_warps,
            shared=compiled.metadata.shared,
            fp_fusion=self.options.enable_fp_fusion,
            assembly=compiled.asm["amdgcn" if is_amd else "ptx"],
            binary=compiled.asm["hsaco" if is_amd else "cubin"],
            ttgir=compiled.asm["ttgir"],
        )


def compile_for(
    kernel: Any, example_args: Mapping[str, Any], chip: Chip, options: Mapping[str, Any]
) -> Artifact:
    """Compile `kernel` for `chip`.

    example_args: every parameter by name: tensors (meta ones too), numbers, constexprs.
    options: what the compiler and not the kernel is told: num_warps, num_stages, waves_per_eu...
    Raises UsageError for something that is not a compilable kernel, or for an unknown option.
    """
    specialisation, _ = specialise(kernel, (), {**example_args, **options}, chip)
    return specialisation.compile()


def specialise(
    kernel: Any, args: Sequence[Any], named: Mapping[str, Any], chip: Chip
) -> tuple[Specialisation, Mapping[str, Any]]:
    """Bind as `kernel[grid](*args, **named)` would; named: parameters and compile options.

    Returns with it the value of every parameter by name. Raises UsageError as `compile_for` does.
    """
    if not isinstance(kernel, JITFunction):
        raise UsageError(
            f"{getattr(kernel, '__name__', kernel)!r} is a {type(kernel).__name__}, not a kernel "
            "of triton.jit: pass what an autotuner or heuristics wrap, and its parameters; kernels "
            "decorated under TRITON_INTERPRET=1 cannot be compiled."
        )
    backend, bind = _binder(kernel, chip)
    try:
        bound, specialization, given = bind(*args, **named)
        options, signature, constexprs, attributes = kernel._pack_args(
            backend, {"debug": False, **given}, bound, specialization, given
        )
    except (TypeError, KeyError) as error:
        raise UsageError(f"cannot bind the arguments of {kernel.__name__}: {error}") from error
    key = f"{kernel.cache_key} {specialization} {sorted(options.__dict__.items())}"
    return Specialisation(kernel, chip, key, signature, constexprs, attributes, options), bound


@functools.lru_cache(maxsize=512)
def _binder(kernel: Any, chip: Chip) -> tuple[Any, Callable[..., Any]]:
    backend = make_backend(chip.target)
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)
