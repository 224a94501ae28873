"""Tile sizes of the grouped product: a table of measured choices, and a rule for all the rest.

The tables lie in `tuned/<architecture>.json`. A line there is looked up by what decides speed
(experts, output and input features, type of the codes, tokens), never by the name a card is sold
under: names are many ("AMD_Instinct_MI350X_VF") and the same chip must find the same line.
`source` says how a line was found. The rule needs no line and holds for every shape; that it serves
a shape is logged once.
"""

import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from glm_portable.errors import UsageError
from glm_portable.kernels import tuned_lines
from glm_portable.kernels.target import Target
from glm_portable.kernels.tuned_lines import Line

log = logging.getLogger(__name__)

TABLES = Path(__file__).parent / "tuned"
FIXED_ROWS = 32
"""Of each tile in deterministic inference. Lower, prefill reads weights more often; higher, decode
computes more rows of nothing."""


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

    def shared_bytes(self, target: Target, a_bytes: int, b_bytes: int) -> int:
        """LDS (shared memory) the grouped product takes, by the bytes of a code of a and of b.

        Stages of one step of both; gfx942 keeps the newest in registers, gfx950 pads its rows.
        """
        stage = self.block_k * (self.block_m * a_bytes + self.block_n * b_bytes)
        stages = self.options["num_stages"]
        if target.arch == "gfx942":
            return max(1, stages - 1) * stage
        return stages * stage * (33 if target.is_amd else 32) // 32


def choose(
    target: Target,
    experts: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    tokens: int,
    chosen: int = 1,
    w8a16: bool = False,
) -> Tile:
    """The tile for (tokens * chosen) rows spread over `experts` matrices of n x k codes `dtype`.

    A line of the table serves the number of tokens it was found for and what lies nearer to it
    than to another line of the same shape. w8a16: FP8 codes that meet wider activations.
    """
    name = name_of(dtype, w8a16)
    lines = [
        line
        for line in table(target.arch)
        if (line.experts, line.n, line.k, line.dtype) == (experts, n, k, name)
    ]
    if lines:
        line = min(lines, key=lambda line: (_ratio(line.tokens, tokens), line.tokens))
        return Tile(**line.tile)
    _say_rule(target.arch, experts, n, k, name)
    return default(target, experts, k, dtype, tokens, chosen, w8a16)


def default(
    target: Target,
    experts: int,
    k: int,
    dtype: torch.dtype,
    tokens: int,
    chosen: int = 1,
    w8a16: bool = False,
) -> Tile:
    """Right for every shape. Tall tiles once an expert has rows to fill them; steps of 128 bytes
    along K, or of 64 where these leave no remainder or K has but one step and a remainder.

    w8a16 on NVIDIA: more of a low tile's widened weights, by fewer warps or longer steps, do not
    fit the registers that are left to them.
    """
    rows = -(-tokens * chosen // experts)
    block_m = next((m for m in (16, 32, 64) if rows <= m), 128)
    step = 128 // dtype.itemsize
    half = k % step and (k % (step // 2) == 0 or k < 2 * step)
    wide = block_m >= 64
    crowded = w8a16 and not wide and not target.is_amd
    block_k = step // 2 if half or crowded else step
    warps = 8 if block_m == 128 or crowded else 4
    options = {"num_warps": warps, "num_stages": 2 if target.is_amd else 3}
    if target.is_amd:
        options["matrix_instr_nonkdim"] = 16
    return Tile(block_m, 128 if wide else 64, block_k, 8 if wide else 1, options)


def fixed(target: Target, experts: int, k: int, dtype: torch.dtype, w8a16: bool = False) -> Tile:
    """The rule's for experts of `FIXED_ROWS` rows, whatever their number: so no sum depends on it.

    No table has a say, since its lines are for numbers of tokens.
    """
    return default(target, experts, k, dtype, FIXED_ROWS * experts, 1, w8a16)


@cache
def table(arch: str) -> tuple[Line, ...]:
    """The lines of one architecture; none if nobody has tuned for it. Raises UsageError."""
    path = TABLES / f"{arch}.json"
    return read(path, Target(arch)) if path.is_file() else ()


def read(path: Path, target: Target) -> tuple[Line, ...]:
    """The lines of a file, all of which fit the chip. Raises UsageError that names the line."""
    lines = tuned_lines.read(path)
    for number, line in enumerate(lines, 1):
        a_bytes, b_bytes = code_bytes(line.dtype)
        needed = Tile(**line.tile).shared_bytes(target, a_bytes, b_bytes)
        if needed > target.shared_limit:
            raise UsageError(
                f"{path}: tile {number} needs {needed:,} bytes of shared memory, and {target.arch} "
                f"has {target.shared_limit:,}: remove the line, or tune it again."
            )
    return lines


def name_of(dtype: torch.dtype, w8a16: bool = False) -> str:
    """What a line calls a type. One name for both dialects of FP8: they cost the same."""
    if dtype.itemsize == 1:
        return "w8a16" if w8a16 else "fp8"
    return str(dtype).removeprefix("torch.")


def code_bytes(name: str) -> tuple[int, int]:
    """Bytes of an activation and of a weight of the types that lines are for."""
    return {"fp8": (1, 1), "w8a16": (2, 1)}.get(name, (2, 2))


@cache
def _say_rule(arch: str, experts: int, n: int, k: int, name: str) -> None:
    """Once for each shape: `cache` calls this no second time."""
    log.info(
        "no measured tile for E=%d N=%d K=%d %s on %s: using the rule's; glm-portable tune finds "
        "the fastest", experts, n, k, name, arch,
    )  # fmt: skip


def _ratio(a: int, b: int) -> float:
    return max(a, b) / min(a, b)
