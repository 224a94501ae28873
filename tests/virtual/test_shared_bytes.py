"""The tuner's formula for shared memory against what the compiler asks for."""

from typing import Literal

import pytest

from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile
from glm_portable.virtual.codegen import inspect
from glm_portable.virtual.codegen.products import GATE_UP, record

BYTES = {"bf16": (2, 2), "channel": (1, 1), "w8a16": (2, 1)}


@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "sm_90"])
@pytest.mark.parametrize(
    ("quantisation", "tile", "stages"),
    [
        ("bf16", (128, 128, 64), 2),
        ("channel", (16, 64, 256), 1),
        ("w8a16", (32, 64, 128), 2),
    ],
)
def test_formula(
    arch: str,
    quantisation: Literal["bf16", "channel", "w8a16"],
    tile: tuple[int, int, int],
    stages: int,
) -> None:
    target = Target(arch)
    options = {"num_warps": 4, "num_stages": stages}
    if target.is_amd:
        options["matrix_instr_nonkdim"] = 16
    chosen = Tile(*tile, options=options)
    launch = record(target, GATE_UP, quantisation, 1024, chosen)
    measured = inspect(launch.kernel, launch.arguments, arch, launch.options).shared
    formula = chosen.shared_bytes(target, *BYTES[quantisation])
    assert 0.5 * formula <= measured <= formula
