"""Which rows each tile of the grouped product takes: tokens sorted by expert, without the host.

Every expert's rows are padded to whole tiles, so that a tile belongs to one expert. All sizes
follow from shapes, never from the routing: nothing waits for the device, and a CUDA or HIP graph
can hold it. Rows keep their order within an expert, so a run gives the same bits again.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch

CHUNK = 4096
"""Choices looked at in one step."""


@dataclass(frozen=True)
class Alignment:
    """rows: int32, choice t * K + k of each row of each tile, T * K where there is none.

    experts: int32, the expert of each tile, -1 for tiles nobody needs (their rows are unset).
    """

    rows: Tensor
    experts: Tensor
    block_m: int


@triton.jit
def count_kernel(experts_ptr, counts_ptr, CHOICES, CHUNK: tl.constexpr):
    """One expert a program: how often it was chosen."""
    expert = tl.program_id(0)
    total = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, CHOICES, CHUNK):
        i = start + tl.arange(0, CHUNK)
        chosen = tl.load(experts_ptr + i, mask=i < CHOICES, other=-1)
        total += (chosen == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(total))


@triton.jit
def place_kernel(
    experts_ptr, counts_ptr, rows_ptr, tile_experts_ptr, CHOICES, E, TILES,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One expert a program; the last program marks the tiles that are left over."""
    expert = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    counts = tl.load(counts_ptr + e, mask=e < E, other=0)
    tiles = (counts + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(e < expert, tiles, 0))
    if expert == E:
        for start in range(first, TILES, CHUNK):
            tile = start + tl.arange(0, CHUNK)
            tl.store(tile_experts_ptr + tile, tile * 0 - 1, mask=tile < TILES)
    else:
        count = tl.sum(tl.where(e == expert, counts, 0))
        last = first + (count + BLOCK_M - 1) // BLOCK_M
        for start in range(first, last, CHUNK):
            tile = start + tl.arange(0, CHUNK)
            tl.store(tile_experts_ptr + tile, tile * 0 + expert, mask=tile < last)
        done = first * BLOCK_M
        for start in range(0, CHOICES, CHUNK):
            i = start + tl.arange(0, CHUNK)
            mine = (tl.load(experts_ptr + i, mask=i < CHOICES, other=-1) == expert).to(tl.int32)
            place = done + tl.cumsum(mine, axis=0) - 1
            tl.store(rows_ptr + place, i, mask=mine > 0)
            done += tl.sum(mine)
        rest = tl.arange(0, BLOCK_M)
        tl.store(rows_ptr + done + rest, rest * 0 + CHOICES, mask=done + rest < last * BLOCK_M)


def align(launch: Launch, experts_TK: Tensor, count: int, block_m: int) -> Alignment:
    """Tiles of `block_m` rows for the choices of each of `count` experts, experts in order.

    Choices outside 0 to count - 1 are in no tile.
    """
    assert experts_TK.is_contiguous() and experts_TK.dtype == torch.int32, f"{experts_TK.dtype=}"
    choices, device = experts_TK.numel(), experts_TK.device
    tiles = most_tiles(choices, count, block_m)
    counts = torch.empty(count, dtype=torch.int32, device=device)
    rows = torch.empty(tiles * block_m, dtype=torch.int32, device=device)
    tile_experts = torch.empty(tiles, dtype=torch.int32, device=device)
    chunk = min(CHUNK, triton.next_power_of_2(choices))
    options = {"num_warps": min(4, max(1, chunk // 256))}
    launch(count_kernel, (count,), experts_TK, counts, choices, CHUNK=chunk, options=options)
    launch(
        place_kernel,
        (count + 1,),
        experts_TK, counts, rows, tile_experts, choices, count, tiles,
        BLOCK_M=block_m, BLOCK_E=triton.next_power_of_2(count + 1), CHUNK=chunk, options=options,
    )  # fmt: skip
    return Alignment(rows, tile_experts, block_m)


def most_tiles(choices: int, experts: int, block_m: int) -> int:
    """Tiles that any routing of so many choices fits into.

    An expert that was chosen n > 0 times needs at most (n + block_m - 1) / block_m tiles, and no
    more than min(choices, experts) experts are chosen at all.
    """
    return (choices + min(choices, experts) * (block_m - 1)) // block_m
