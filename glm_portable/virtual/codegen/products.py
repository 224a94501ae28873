"""Cases of the grouped expert product: this project's own tiles, and those of peers."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from glm_portable.kernels.align import Alignment, most_tiles
from glm_portable.kernels.grouped_gemm import Matrices, gemm, grouped_gemm
from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile, default
from glm_portable.virtual.codegen.peers import PRODUCTS, Peer, Quantisation
from glm_portable.virtual.codegen.recording import Recorded, Recorder

CHOSEN = 8
META = torch.device("meta")


@dataclass(frozen=True)
class Shape:
    """The weights of one rank: `experts` matrices (n, k), or with one expert a linear layer.

    routed: the second product of experts, whose rows are multiplied by routing weights; the first
    reads each token's row 8 times. bias: what the linear layer adds (qkv of GLM-4.5).
    """

    model: str
    experts: int
    n: int
    k: int
    routed: bool = False
    bias: bool = False


GATE_UP = Shape("GLM-4.5 TP8 gate_up", 160, 384, 5120)
DOWN = Shape("GLM-4.5 TP8 down", 160, 5120, 192, routed=True)
AIR_GATE_UP = Shape("Air TP2 gate_up", 128, 1408, 4096)
AIR_DOWN = Shape("Air TP8 down", 128, 4096, 176, routed=True)

OWN: tuple[tuple[Shape, tuple[Quantisation, ...], tuple[int, ...]], ...] = (
    (GATE_UP, ("bf16", "channel"), (16, 512, 1024, 4096)),
    (GATE_UP, ("w8a16", "block"), (16, 1024, 4096)),
    (DOWN, ("bf16", "channel", "block"), (16, 1024, 4096)),
    (AIR_GATE_UP, ("bf16", "channel"), (4096,)),
    (AIR_DOWN, ("bf16", "channel", "w8a16"), (16, 1024)),
)
"""(weights, how they are quantised, tokens in a step), at the tile the project picks itself.

Widths of GLM-4.5 and Air under tensor parallelism are often no multiples of 128 (192, 176): then
the last step along K is masked.
"""


@dataclass(frozen=True)
class Product:
    """One launch of the grouped product. configuration: in words; peer: whose tile it is."""

    configuration: str
    quantisation: Quantisation
    tile: Tile
    launch: Recorded
    peer: Peer | None = None


def own(target: Target) -> Iterator[Product]:
    """The products of OWN."""
    for shape, quantisations, steps in OWN:
        for quantisation, tokens in product(quantisations, steps):
            dtype = torch.bfloat16 if quantisation == "bf16" else target.fp8
            w8a16 = quantisation == "w8a16"
            tile = default(target, shape.experts, shape.k, dtype, tokens, CHOSEN, w8a16)
            yield Product(
                f"{shape.model}, {tokens} tokens",
                quantisation,
                tile,
                record(target, shape, quantisation, tokens, tile),
            )


def beside_peers(target: Target) -> Iterator[Product]:
    """The same kernel at each peer's tile, warps and matrix instruction, for its shape."""
    for peer in PRODUCTS:
        if peer.target == target.arch:
            shape, tokens = _shape_of(peer)
            tile = _tile_of(peer, target)
            launch = record(target, shape, peer.quantisation, tokens, tile)
            name = f"as {peer.engine} {peer.configuration}"
            yield Product(name, peer.quantisation, tile, launch, peer)


def _shape_of(peer: Peer) -> tuple[Shape, int]:
    """vLLM names E, the rank's width (half of N) and the tokens; AITER serves all shapes."""
    words = peer.configuration.split()
    if len(words) != 3:
        return Shape("", 160, 768, 5120), 1024
    experts, width, tokens = (int(word[1:]) for word in words)
    return Shape("", experts, 2 * width, 5120 if experts == 160 else 4096), tokens


def _tile_of(peer: Peer, target: Target) -> Tile:
    options = {"num_warps": peer.num_warps, "num_stages": 2}
    if target.is_amd:
        options["matrix_instr_nonkdim"] = int(peer.matrix[0].split("x")[0])
    else:
        # Stages as far as the shared memory says: a stage holds one step of A and of B.
        # The pipeline before mma (tiles of fewer than 64 rows) keeps one of them in registers.
        stages = (peer.shared or 0) // (sum(peer.tile[:2]) * peer.tile[2])
        options["num_stages"] = stages + (peer.tile[0] < 64)
    return Tile(*peer.tile, group_m=1, options=options)


def record(
    target: Target, shape: Shape, quantisation: Quantisation, tokens: int, tile: Tile
) -> Recorded:
    """The launch of one product, with tensors that have a shape and no storage."""
    rows = tokens * CHOSEN
    codes = torch.bfloat16 if quantisation == "bf16" else target.fp8
    quantised = quantisation in ("channel", "block")
    read = rows if shape.routed else tokens
    a = torch.empty(read, shape.k, dtype=codes if quantised else torch.bfloat16, device=META)
    a_scale, b = _float32(read, 1) if quantised else None, _matrices(shape, quantisation, codes)
    recorder = Recorder()
    if shape.experts == 1:
        bias = torch.empty(shape.n, dtype=torch.bfloat16, device=META) if shape.bias else None
        gemm(recorder, a, a_scale, b, tile, torch.bfloat16, bias)
        return recorder.launches[0]
    tiles = most_tiles(rows, shape.experts, tile.block_m)
    grouped_gemm(
        recorder,
        a,
        a_scale,
        b,
        Alignment(_int32(tiles * tile.block_m), _int32(tiles), tile.block_m),
        tile,
        torch.bfloat16,
        rows,
        _float32(rows) if shape.routed else None,
    )
    return recorder.launches[0]


def _matrices(shape: Shape, quantisation: Quantisation, codes: torch.dtype) -> Matrices:
    data = torch.empty(shape.experts, shape.n, shape.k, dtype=codes, device=META)
    if quantisation == "bf16":
        return Matrices(data)
    if quantisation == "block":
        blocks = (-(-shape.n // 128), -(-shape.k // 128))
        return Matrices(data, _float32(shape.experts, *blocks), (128, 128))
    return Matrices(data, _float32(shape.experts, shape.n, 1))


def _float32(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.float32, device=META)


def _int32(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.int32, device=META)
