"""The tiles worth measuring for one product: at most `MOST`, the rule's first."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile, code_bytes, default
from glm_portable.tune.shapes import Job

MOST = 60
HEIGHTS = (16, 32, 64, 128)


def rule(job: Job, target: Target) -> Tile:
    """What serves the product while nothing is measured."""
    shape = job.shape
    dtype = torch.bfloat16 if job.dtype == "bfloat16" else target.fp8
    w8a16 = job.dtype == "w8a16"
    return default(target, shape.experts, job.k, dtype, job.tokens, shape.chosen, w8a16)


def candidates(job: Job, target: Target, block_m: int | None = None) -> list[Tile]:
    """The rule's tile, then others that fit the product and the chip's shared memory.

    block_m: of all of them, for a product that shares the alignment of another.
    """
    first = rule(job, target)
    if block_m is not None:
        first = replace(first, block_m=block_m)
    found = [first]
    for tile in _around(job, target, first, block_m):
        if tile not in found and _fits(tile, job, target):
            found.append(tile)
    return found[:MOST]


def _around(job: Job, target: Target, first: Tile, block_m: int | None) -> Iterator[Tile]:
    """Near ones first: what is cut off at the end is what is least like the rule's."""
    heights = [block_m] if block_m is not None else _heights(job, first)
    widths = [n for n in (64, 128, 32, 256) if n <= max(32, 2 * job.n)]
    step = 128 // code_bytes(job.dtype)[1]
    steps = [k for k in (step, step // 2, 2 * step) if k <= job.k]
    stages = (2, 1) if target.is_amd else (3, 4, 2)
    for stage, m, k, n in product(stages, heights, steps, widths):
        for warps in _warps(m, n):
            options = {**first.options, "num_warps": warps, "num_stages": stage}
            group = 8 if m >= 64 else 1
            yield Tile(m, n, k, group, options)
            if target.is_amd and min(m, n) >= 32 and stage == stages[0]:
                yield Tile(m, n, k, group, options | {"matrix_instr_nonkdim": 32})


def _heights(job: Job, first: Tile) -> list[int]:
    """The rule's, the next lower and the next higher one."""
    near = sorted(HEIGHTS, key=lambda m: (abs(HEIGHTS.index(m) - HEIGHTS.index(first.block_m)), m))
    distance = {m: abs(HEIGHTS.index(m) - HEIGHTS.index(first.block_m)) for m in near}
    return [m for m in near if distance[m] <= 1]


def _warps(m: int, n: int) -> list[int]:
    """At least 512 results a warp, at most 8,192."""
    return [w for w in (4, 8, 2) if 512 <= m * n // w <= 8192]


def _fits(tile: Tile, job: Job, target: Target) -> bool:
    return tile.shared_bytes(target, *code_bytes(job.dtype)) <= target.shared_limit
