"""How a kernel is started: the one seam between a launcher and the machine that runs it.

Every launcher in this folder takes a `Launch` as its first argument. On a GPU that is `jit`; a
simulator, an interpreter or a recorder that only wants to see which kernels run, with which
arguments and compile options, is a function of the same shape.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

Argument = Tensor | int | float | None
Grid = tuple[int, ...]


class Launch(Protocol):
    """Start `kernel` on `grid`, with run-time arguments in order.

    options: what the compiler and not the kernel is told (num_warps, num_stages, ...).
    constexprs: the kernel's compile-time parameters, by name.
    """

    def __call__(
        self,
        kernel: Any,
        grid: Grid,
        *arguments: Argument,
        options: Mapping[str, int],
        **constexprs: Any,
    ) -> None: ...


def jit(
    kernel: Any,
    grid: Grid,
    *arguments: Argument,
    options: Mapping[str, int],
    **constexprs: Any,
) -> None:
    """Triton's own launch: compiles for the tensors' device at first sight, then enqueues."""
    kernel[grid](*arguments, **constexprs, **options)
