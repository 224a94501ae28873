"""How a kernel is started: the one seam between a launcher and the machine that runs it.

Every launcher in this folder takes a `Launch` as its first argument. On a GPU that is `jit`; a
simulator, an interpreter or a recorder that only wants to see which kernels run, with which
arguments and compile options, is a function of the same shape.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from glm_portable.kernels.target import Target

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


def on(target: Target, launch: Launch) -> Launch:
    """`launch` for one chip: refuses FP8 that it would emulate; an empty grid starts nothing.

    The one place that sees every tensor of every kernel. The compiler does not refuse: it turns a
    product in the other dialect into thousands of instructions, without a word on gfx942.
    """

    def checked(
        kernel: Any,
        grid: Grid,
        *arguments: Argument,
        options: Mapping[str, int],
        **constexprs: Any,
    ) -> None:
        for argument in arguments:
            if isinstance(argument, Tensor):
                target.check(argument.dtype)
        if 0 not in grid:
            launch(kernel, grid, *arguments, options=options, **constexprs)

    return checked


def observed(launch: Launch) -> tuple[Launch, Counter[str]]:
    """`launch`, and how often it has started each kernel so far, by the kernel's name."""
    seen: Counter[str] = Counter()

    def counted(
        kernel: Any,
        grid: Grid,
        *arguments: Argument,
        options: Mapping[str, int],
        **constexprs: Any,
    ) -> None:
        launch(kernel, grid, *arguments, options=options, **constexprs)
        seen[kernel.__name__.removesuffix("_kernel")] += 1

    return counted, seen
