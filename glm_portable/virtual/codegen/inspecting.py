"""Compile a kernel and read it, whichever the vendor."""

from collections.abc import Mapping
from typing import Any

from glm_portable.virtual.chips import Chip, chip
from glm_portable.virtual.codegen import amd, nvidia
from glm_portable.virtual.codegen.metrics import Metrics
from glm_portable.virtual.compiling import compile_for


def inspect(
    kernel: Any,
    example_args: Mapping[str, Any],
    target: str | Chip,
    options: Mapping[str, Any] | None = None,
) -> Metrics:
    """Compile `kernel` for `target` as for these arguments, and read the result.

    example_args: every parameter by name, constexprs too; tensors may be on the meta device.
    target: gfx942, gfx950, sm_90 or sm_100. options: num_warps, num_stages...
    Raises UsageError for arguments that do not fit the kernel, Disagreement if two readers of
    the same artifact differ.
    """
    at = target if isinstance(target, Chip) else chip(target)
    artifact = compile_for(kernel, example_args, at, options or {})
    return amd.read(artifact) if at.is_amd else nvidia.read(artifact)
