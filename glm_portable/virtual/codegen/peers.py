"""What the same compiler (Triton 3.9.0) makes of other projects' kernels.

vLLM 0.33.0's fused MoE with the configurations it ships, and AITER at e4048607. Their hot loops
were measured as `amd` and `nvidia` measure ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from glm_portable.virtual.codegen.amd import MATRIX_CYCLES

Quantisation = Literal["bf16", "channel", "block", "w8a16"]
"""Of the weights: none, a scale a channel, a scale a block of 128 x 128 (activations FP8 in both),
or FP8 that is widened to meet bf16 activations."""


@dataclass(frozen=True)
class Peer:
    """A row of the table in docs/kernels.md; the columns are those of metrics.Metrics.

    tile: (BLOCK_M, BLOCK_N, BLOCK_K) of an expert product; of attention (rows, keys, head size).
    matrix: (instruction, count in the hot loop). valu: in the hot loop. AMD rows only, where
    `instructions` are the hot loop's; for NVIDIA they are the whole kernel's.
    """

    engine: str
    configuration: str
    target: str
    quantisation: Quantisation
    tile: tuple[int, int, int]
    num_warps: int
    registers: int
    spills: int
    shared: int | None
    waves: int | None
    workgroups: int | None
    matrix: tuple[str, int]
    valu: int | None
    instructions: int

    @property
    def pressure(self) -> float | None:
        """As metrics.Loop.pressure."""
        name, count = self.matrix
        return None if self.valu is None else 4 * self.valu / (MATRIX_CYCLES[name] * count)


def _products(engine: str, target: str, rows: str) -> list[Peer]:
    """configuration | quantisation | tile | warps | registers | LDS | waves | workgroups |
    matrix x count | VALU | instructions, one row a line. None of them spills."""
    found = []
    for line in rows.strip().splitlines():
        name, kind, tile, *rest = (part.strip() for part in line.split("|"))
        quantisation: Quantisation = next(q for q in get_args(Quantisation) if q == kind)
        warps, registers, shared, waves, groups, matrix, valu, instructions = rest
        m, n, k = (int(size) for size in tile.split("x"))
        instruction, _, count = matrix.partition(" x ")
        found.append(
            Peer(
                engine, name, target, quantisation, (m, n, k), int(warps), int(registers), 0,
                int(shared), int(waves), int(groups), (instruction, int(count)), int(valu),
                int(instructions),
            )
        )  # fmt: skip
    return found


_VLLM_942 = """
E160 N192 M16   | bf16    | 16x64x64    | 4 |  60 | 10240 | 8 | 6 | 16x16x16_bf16 x 8     | 31 | 92
E160 N384 M16   | channel | 16x64x128   | 4 |  66 | 10240 | 7 | 6 | 16x16x32_fp8_fp8 x 8  | 30 | 103
E128 N384 M16   | block   | 16x128x128  | 8 |  86 | 18432 | 5 | 2 | 16x16x32_fp8_fp8 x 8  | 56 | 148
E160 N192 M64   | bf16    | 16x128x64   | 8 |  58 | 18432 | 8 | 3 | 16x16x16_bf16 x 8     | 31 | 93
E160 N384 M64   | channel | 16x256x128  | 8 |  86 | 34816 | 5 | 1 | 16x16x32_fp8_fp8 x 8  | 24 | 73
E160 N192 M1024 | bf16    | 64x128x64   | 8 |  94 | 24576 | 5 | 2 | 16x16x16_bf16 x 32    | 29 | 126
E160 N384 M1024 | channel | 64x128x256  | 4 | 248 | 49152 | 2 | 1 | 32x32x16_fp8_fp8 x 32 | 65 | 184
E128 N384 M1024 | block   | 128x128x128 | 8 | 190 | 32768 | 2 | 1 | 32x32x16_fp8_fp8 x 16 | 69 | 166
"""
_VLLM_950 = """
E160 N384 M16   | channel | 16x32x128  | 2 |  54 | 12512 | 8 | 13 | 16x16x128_f8f6f4 x 1 | 16 | 61
E160 N384 M64   | channel | 16x256x128 | 8 |  64 | 71648 | 8 | 2  | 16x16x128_f8f6f4 x 2 | 20 | 82
E160 N384 M1024 | channel | 64x256x128 | 8 | 120 | 83168 | 4 | 1  | 32x32x64_f8f6f4 x 4  | 13 | 83
"""
_AITER_942 = """
small_M  | block   | 64x64x128   | 8 |  92 | 16384 | 5 | 2 | 16x16x32_fp8_fp8 x 16 | 47 | 124
small_M  | channel | 64x64x128   | 8 |  50 | 16384 | 8 | 4 | 16x16x32_fp8_fp8 x 32 | 10 | 113
small_M  | bf16    | 64x64x64    | 8 |  52 | 16384 | 8 | 4 | 16x16x16_bf16 x 32    | 12 | 115
medium_M | block   | 128x128x128 | 8 | 160 | 32768 | 3 | 1 | 16x16x32_fp8_fp8 x 32 | 59 | 151
medium_M | channel | 128x128x128 | 8 | 124 | 32768 | 4 | 2 | 16x16x32_fp8_fp8 x 64 | 12 | 137
medium_M | bf16    | 128x128x128 | 8 | 204 | 65536 | 2 | 1 | 16x16x16_bf16 x 64    | 20 | 147
large_M  | bf16    | 256x256x64  | 8 | 246 | 65536 | 2 | 1 | 16x16x16_bf16 x 128   | 20 | 222
"""
_AITER_950 = """
small_M  | block   | 64x64x128   | 8 |  72 | 33728 | 7 | 3 | 16x16x128_f8f6f4 x 2 | 24 | 68
"""
PRODUCTS = (
    *_products("vLLM", "gfx942", _VLLM_942),
    *_products("vLLM", "gfx950", _VLLM_950),
    *_products("AITER", "gfx942", _AITER_942),
    *_products("AITER", "gfx950", _AITER_950),
    Peer("vLLM", "E160 N192 M16", "sm_90", "channel", (16, 128, 128), 4, 91, 0, 36_864, None,
         None, ("HMMA.16816.F32", 32), None, 976),
    Peer("vLLM", "E160 N192 M1024", "sm_90", "channel", (64, 128, 128), 4, 141, 0, 49_152, None,
         None, ("QGMMA.64x128x32.F32", 4), None, 1_272),
)  # fmt: skip
"""Where AITER has one scale a tensor, its row stands beside ours with one a channel: both multiply
by scales after the loop."""


def beside(target: str, quantisation: Quantisation, tile: tuple[int, int, int]) -> tuple[Peer, ...]:
    """The peers' products of the same types at the same tile on the same chip."""
    wanted = (target, quantisation, tile)
    return tuple(p for p in PRODUCTS if (p.target, p.quantisation, p.tile) == wanted)


ATTENTION: Mapping[str, tuple[Peer, ...]] = {
    "decode": (
        Peer("AITER", "unified 3d", "gfx942", "bf16", (16, 64, 128), 4, 170, 0, 16_384, 2, None,
             ("16x16x16_bf16", 40), 238, 360),
        Peer("AITER", "unified 3d", "gfx950", "bf16", (16, 64, 128), 4, 128, 0, None, None, None,
             ("16x16x32_bf16", 20), 129, 233),
    ),
    "prefill": (
        Peer("AITER", "unified 2d", "gfx942", "bf16", (128, 64, 128), 4, 256, 8, None, 2, None,
             ("32x32x8_bf16", 64), 482, 658),
        Peer("AITER", "unified 2d", "gfx950", "bf16", (128, 64, 128), 4, 256, 0, None, None, None,
             ("32x32x16_bf16", 32), 285, 445),
    ),
}  # fmt: skip
