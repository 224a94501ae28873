"""Tile sizes of the grouped product: a table of measured choices, and a rule for all the rest.

The tables lie in `tuned/<architecture>.json`. A line there is looked up by what decides speed
(experts, output and input features, type of the codes, tokens), never by the name a card is sold
under: names are many ("AMD_Instinct_MI350X_VF") and the same chip must find the same line.
`source` says how a line was found. The rule needs no line and holds for every shape.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from glm_portable.kernels.target import Target

TABLES = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class Tile:
    """A tile of the result, the step along K, and how the compiler is to build it.

    group_m: tiles of rows that share a column of weights at one time. options: num_warps,
    num_stages and, on AMD, matrix_instr_nonkdim and waves_per_eu.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int = 1
    options: dict[str, int] = field(default_factory=dict)


def choose(
    target: Target, experts: int, n: int, k: int, dtype: torch.dtype, tokens: int, chosen: int = 1
) -> Tile:
    """The tile for (tokens * chosen) rows spread over `experts` matrices of n x k codes `dtype`.

    A line of the table serves the number of tokens it was found for and what lies nearer to it
    than to another line of the same shape.
    """
    lines = [
        line
        for line in table(target.arch)
        if (line["E"], line["N"], line["K"], line["dtype"]) == (experts, n, k, _name(dtype))
    ]
    if lines:
        line = min(lines, key=lambda line: (_ratio(line["tokens"], tokens), line["tokens"]))
        return Tile(**line["tile"])
    return default(target, experts, k, dtype, tokens, chosen)


def default(
    target: Target, experts: int, k: int, dtype: torch.dtype, tokens: int, chosen: int = 1
) -> Tile:
    """Right for every shape. Tall tiles once an expert has rows to fill them; steps of 128 bytes
    along K, or of 64 where these leave no remainder or K has but one step and a remainder."""
    rows = -(-tokens * chosen // experts)
    block_m = next((m for m in (16, 32, 64) if rows <= m), 128)
    step = 128 // dtype.itemsize
    half = k % step and (k % (step // 2) == 0 or k < 2 * step)
    block_k = step // 2 if half else step
    wide = block_m >= 64
    options = {"num_warps": 8 if block_m == 128 else 4, "num_stages": 2 if target.is_amd else 3}
    if target.is_amd:
        options["matrix_instr_nonkdim"] = 16
    return Tile(block_m, 128 if wide else 64, block_k, 8 if wide else 1, options)


@cache
def table(arch: str) -> tuple[dict[str, Any], ...]:
    """The lines of one architecture; none if nobody has tuned for it."""
    path = TABLES / f"{arch}.json"
    if not path.is_file():
        return ()
    return tuple(json.loads(path.read_text(encoding="utf-8"))["tiles"])


def _name(dtype: torch.dtype) -> str:
    """One name for both dialects of FP8: they cost the same."""
    return "fp8" if dtype.itemsize == 1 else str(dtype).removeprefix("torch.")


def _ratio(a: int, b: int) -> float:
    return max(a, b) / min(a, b)
