"""What stands between a launcher and the machine: refusals, empty grids, and who ran."""

from typing import Any

import pytest
import torch

from glm_portable.errors import UsageError
from glm_portable.kernels import launch
from glm_portable.kernels.attention import attend
from glm_portable.kernels.grouped_gemm import Matrices, gemm
from glm_portable.kernels.launch import Launch
from glm_portable.kernels.quantize import quantize
from glm_portable.kernels.rope import rope_store
from glm_portable.kernels.target import FNUZ, OCP, Target
from glm_portable.kernels.tiles import Tile
from glm_portable.ops import KVCache, Step

BF16 = torch.bfloat16
OTHER = [("gfx942", OCP), ("gfx950", FNUZ), ("sm_90", FNUZ), ("sm_100", FNUZ)]


def idle(*arguments: Any, **rest: Any) -> None:
    """A machine on which every kernel ends at once."""


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def start_all(target: Target, start: Launch, dialect: torch.dtype, step: Step) -> list[Any]:
    """Each launcher that takes FP8, as a call to make."""
    x, pages = empty(1, 1, 32), empty(2, 16, 1, 32, dtype=dialect)
    cache = KVCache(pages, pages)
    codes, scale = empty(1, 32, dtype=dialect), empty(1, 1, dtype=torch.float32)
    w = Matrices(empty(1, 16, 32, dtype=dialect), empty(1, 16, 1, dtype=torch.float32))
    return [
        lambda: attend(start, target, x, cache, step, 1.0),
        lambda: rope_store(start, x, x, x, x[0], x[0], cache, step.slots_T),
        lambda: gemm(start, codes, scale, w, Tile(16, 16, 32), BF16),
        lambda: gemm(start, x[0], None, w, Tile(16, 16, 32), BF16),
    ]


@pytest.mark.parametrize(("arch", "dialect"), OTHER, ids=str)
def test_every_launcher_refuses_the_other_dialect(arch: str, dialect: torch.dtype) -> None:
    target = Target(arch)
    step = Step.build([(0, 1, [0])], 16, torch.device("cpu"))
    start, seen = launch.observed(idle)
    start = launch.on(target, start)
    for call in start_all(target, start, dialect, step):
        with pytest.raises(UsageError, match=f"{dialect} on {arch}: this chip computes with"):
            call()
    assert not seen
    for call in start_all(target, start, target.fp8, step):
        call()
    assert seen == {"attend": 1, "rope_store": 1, "grouped_gemm": 2}


def test_an_empty_grid_starts_nothing() -> None:
    start, seen = launch.observed(idle)
    quantize(launch.on(Target("gfx942"), start), Target("gfx942"), empty(0, 32))
    assert not seen


def test_a_kernel_that_fails_is_not_counted() -> None:
    def broken(*arguments: Any, **rest: Any) -> None:
        raise RuntimeError("out of resources")

    start, seen = launch.observed(broken)
    with pytest.raises(RuntimeError, match="out of resources"):
        quantize(start, Target("gfx942"), empty(1, 32))
    assert not seen
