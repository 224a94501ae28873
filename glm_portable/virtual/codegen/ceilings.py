"""What each kernel may cost at most, and which matrix instruction it is meant to become.

The ceilings are what Triton 3.9.0 was measured to make of the kernels, and about a quarter more:
another version needs another table.
"""

from glm_portable.kernels.target import Target
from glm_portable.virtual.codegen.expectation import Expectation
from glm_portable.virtual.codegen.products import Product

SHORT = 64
"""Rows from which wgmma and tcgen05 can multiply, and CDNA has enough matrix work to hide VALU."""

VALU_PER_MATRIX = {
    ("gfx942", "bf16"): (1.5, 0.5), ("gfx942", "channel"): (2.0, 0.5),
    ("gfx942", "w8a16"): (6.0, 2.0), ("gfx942", "block"): (2.5, 1.8),
    ("gfx950", "bf16"): (9.0, 1.3), ("gfx950", "channel"): (14.0, 2.2),
    ("gfx950", "w8a16"): (12.0, 2.0), ("gfx950", "block"): (17.0, 6.2),
}  # fmt: skip
"""(tiles of fewer than 64 rows, of more), by chip and quantisation. gfx950's instructions do two to
four times the work of gfx942's. Steps of 64 codes, for widths such as 176, have half the matrix
work beside the same addresses: 10.5 at 16 rows of w8a16 on gfx950."""

ATTENTION_VALU = {
    ("gfx942", "bf16"): {"decode": 5.8, "verify": 4.1, "prefill": 3.9},
    ("gfx942", "fp8"): {"decode": 11.7, "verify": 10.0, "prefill": 10.4},
    ("gfx950", "bf16"): {"decode": 5.5, "verify": 4.0, "prefill": 4.0},
    ("gfx950", "fp8"): {"decode": 11.7, "verify": 12.6, "prefill": 12.7},
}
"""By chip and what the pages hold. CDNA goes from FP8 to bf16 through float32: FP8 costs VALU."""


def of_product(target: Target, product: Product) -> Expectation:
    """Beside a peer the peer is the ceiling (measure.better_peers), and none stands here."""
    tile, quantisation = product.tile, product.quantisation
    short = tile.block_m < SHORT
    fp8 = quantisation in ("channel", "block")
    ceiling = None
    if target.is_amd and not product.peer:
        ceiling = VALU_PER_MATRIX[target.arch, quantisation][not short]
    # A tile of A below 16 bytes a lane is loaded in smaller pieces; block scales are 4 bytes each.
    lanes = tile.options["num_warps"] * (64 if target.is_amd else 32)
    small = tile.block_m * tile.block_k * (1 if fp8 else 2) < 16 * lanes
    dialect = "fp8" if fp8 else "bf16"
    if fp8 and short and not target.is_amd:
        # wgmma and tcgen05 want 64 rows. Below, Triton has mma on f16, which holds e4m3 exactly.
        dialect = "f16"
    return Expectation(
        dialects=frozenset({dialect}),
        valu_per_matrix=ceiling,
        dword_loads=8 * small + (32 if quantisation == "block" else 0),
    )


def of_attention(target: Target, phase: str, pages: str, slots: int, kernel: str) -> Expectation:
    """Products are of bf16 whatever the pages hold. The block table is read 4 bytes at a time."""
    if kernel == "merge":
        return Expectation(dword_loads=None)
    return Expectation(
        dialects=frozenset({"bf16"}),
        valu_per_matrix=ATTENTION_VALU.get((target.arch, pages), {}).get(phase),
        dword_loads=8 if slots < 64 else 2,
    )


def of_rows(target: Target, kernel: str) -> Expectation:
    """Kernels that go through rows once; the router's product is of float32.

    A head of 128 leaves some lanes of `rope_store` a single bf16 each.
    """
    product = kernel == "gate" and target.is_amd
    return Expectation(
        dialects=frozenset({"f32"} if product else ()),
        dword_loads=None,
        narrowest=2 if kernel == "rope_store" else 4,
    )
