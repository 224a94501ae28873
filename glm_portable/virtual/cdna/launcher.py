"""Run a Triton kernel's machine code on CPU tensors: compile, place arguments, execute."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glm_portable.errors import UsageError
from glm_portable.kernels.launch import Launch
from glm_portable.virtual.cdna.chips import chip_named
from glm_portable.virtual.cdna.compile import Compiled, compile_kernel
from glm_portable.virtual.cdna.decode import decode_text
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.machine import Code, Grid, Job, Statistics, run
from glm_portable.virtual.cdna.memory import Bytes, GlobalMemory
from glm_portable.virtual.cdna.parser import Program

MAX_INSTRUCTIONS = 100_000_000  # of one workgroup; what runs longer is taken to hang


def launch(
    kernel: Any,
    grid: Sequence[int] | Callable[[Mapping[str, Any]], Sequence[int]],
    *args: Any,
    arch: str = "gfx942",
    num_warps: int = 4,
    num_stages: int = 2,
    seed: int = 0,
    max_instructions: int = MAX_INSTRUCTIONS,
    **named: Any,
) -> Statistics:
    """kernel[grid](*args, ...) on a simulated chip; results are written into the tensors.

    args and named: torch tensors on the CPU, scalars, constexprs and compile options as for
    `kernel[grid]`. seed: of the order in which waves take turns. Raises UsageError for arguments
    that cannot be passed, and Fault for what the program does wrong.
    """
    _refuse_descriptors([*args, *named.values()])
    options = {"num_warps": num_warps, "num_stages": num_stages, **named}
    compiled = compile_kernel(kernel, args, arch, options)
    shape = grid(compiled.bound) if callable(grid) else grid
    return execute(compiled, shape, seed=seed, max_instructions=max_instructions)


def launch_on(arch: str, seed: int = 0) -> Launch:
    """How this project's own launchers start a kernel on a simulated chip: see kernels.launch."""
    chip_named(arch)

    def start(
        kernel: Any,
        grid: Sequence[int],
        *arguments: Any,
        options: Mapping[str, int],
        **constexprs: Any,
    ) -> None:
        launch(kernel, grid, *arguments, arch=arch, seed=seed, **options, **constexprs)

    return start


def execute(
    compiled: Compiled,
    grid: Sequence[int],
    code: Code | None = None,
    seed: int = 0,
    max_instructions: int = MAX_INSTRUCTIONS,
) -> Statistics:
    """Execute compiled code on the arguments it was compiled with; code: in place of its own."""
    program, own = decode_text(compiled.text, compiled.arch)
    memory = GlobalMemory()
    kernarg = memory.place(*_kernarg(program, compiled.arguments, memory), writable=False)
    job = Job(
        program,
        own if code is None else code,
        chip_named(compiled.arch),
        _three(grid),
        compiled.waves,
        kernarg,
        compiled.lds_bytes,
        seed,
        max_instructions,
    )
    return run(job, memory)


def _three(grid: Sequence[int]) -> Grid:
    x, y, z = (*grid, 1, 1)[:3]
    if len(grid) > 3 or min(x, y, z) < 1:
        raise UsageError(f"grid {tuple(grid)} is not one to three positive numbers.")
    return int(x), int(y), int(z)


def _kernarg(
    program: Program, arguments: Sequence[Any], memory: GlobalMemory
) -> tuple[Bytes, list[tuple[int, int]]]:
    """The kernel argument segment as the code object's metadata lays it out; what the compiler
    added behind the kernel's own arguments (scratch pointers) is null."""
    metadata = program.metadata
    layout = metadata[".args"]
    size = metadata[".kernarg_segment_size"]
    addresses = _place_tensors([a for a in arguments if isinstance(a, Tensor)], memory)
    segment = bytearray(-(-size // 64) * 64 + 64)  # loads may reach past the last argument
    if len(layout) < len(arguments):
        raise UnsupportedInstruction("arguments that are not one value each")
    for entry, argument in zip(layout, arguments, strict=False):
        start, width = entry[".offset"], entry[".size"]
        value = addresses[id(argument)] if isinstance(argument, Tensor) else argument
        segment[start : start + width] = _encoded(value, width)
    return np.frombuffer(segment, np.uint8), [(0, len(segment))]


def _encoded(value: Any, width: int) -> bytes:
    if isinstance(value, float):
        return struct.pack("<f" if width == 4 else "<d", value)
    if isinstance(value, int):
        return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    raise UsageError(f"an argument of type {type(value).__name__} cannot be passed to a kernel.")


def _refuse_descriptors(values: Iterable[Any]) -> None:
    for value in values:
        if "Descriptor" in type(value).__name__:
            raise UsageError(
                f"a {type(value).__name__} cannot be simulated; pass the tensor and its strides."
            )


def _place_tensors(tensors: Sequence[Tensor], memory: GlobalMemory) -> dict[int, int]:
    """Addresses by id: views of one storage share its bytes, and only what they span is open."""
    by_storage: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise UsageError(f"a tensor is on {tensor.device}; the simulator takes CPU tensors.")
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    addresses: dict[int, int] = {}
    for views in by_storage.values():
        base = memory.place(_bytes(views[0]), [_span(view) for view in views])
        for view in views:
            addresses[id(view)] = base + int(view.storage_offset()) * view.element_size()
    return addresses


def _bytes(tensor: Tensor) -> Bytes:
    """The whole storage of a tensor, shared."""
    storage = tensor.untyped_storage()
    data: Bytes = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return data


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first and last byte + 1 of a view in its storage."""
    size = tensor.element_size()
    start = int(tensor.storage_offset()) * size
    if tensor.numel() == 0:
        return start, start
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (int(reach) + 1) * size
