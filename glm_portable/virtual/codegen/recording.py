"""See which kernels a launcher starts, with which arguments and options, and start none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glm_portable.kernels.launch import Argument, Grid


@dataclass(frozen=True)
class Recorded:
    """One launch that was asked for. arguments: all parameters by name, constexprs too."""

    kernel: Any
    grid: Grid
    arguments: Mapping[str, Any]
    options: Mapping[str, int]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__).removesuffix("_kernel")


@dataclass
class Recorder:
    """A `kernels.launch.Launch` that only remembers. Give the launchers tensors on meta."""

    launches: list[Recorded] = field(default_factory=list)

    def __call__(
        self,
        kernel: Any,
        grid: Grid,
        *arguments: Argument,
        options: Mapping[str, int],
        **constexprs: Any,
    ) -> None:
        bound = kernel.signature.bind(*arguments, **constexprs).arguments
        self.launches.append(Recorded(kernel, grid, dict(bound), dict(options)))
