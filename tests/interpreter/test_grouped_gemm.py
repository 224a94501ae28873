"""The grouped product in every quantisation, on the widths that tensor parallelism leaves."""

import pytest
import torch
from torch import Tensor

from glm_portable.kernels.align import Alignment, align
from glm_portable.kernels.grouped_gemm import Matrices, combine, gemm, grouped_gemm
from glm_portable.kernels.quantize import quantize
from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile
from glm_portable.verify.metrics import faults
from glm_portable.virtual.interpreter import launch
from tests.backends.cases import choices, normal, weight
from tests.interpreter.kernel_inputs import BF16, TARGETS, matrices

TILE = Tile(16, 128, 128)
KINDS = ["bf16", "w8a8 channel", "w8a8 block", "w8a16 channel", "w8a16 block"]


class Product:
    """Inputs of one kind: as the kernel takes them, and in float64."""

    def __init__(self, kind: str, target: Target, tokens: int, e: int, n: int, k: int) -> None:
        x = normal(tokens, k, outliers=True).to(BF16)
        self.a, self.exact_a, self.a_scale = x, x.double(), None
        if kind == "bf16":
            self.b = Matrices(weight(e, n, k, dtype=BF16).data)
            self.exact_b = self.b.data.double()
        else:
            block = (128, 128) if kind.endswith("block") else None
            self.b, self.exact_b = matrices(target, e, n, k, block)
        if kind.startswith("w8a8"):
            self.a, self.a_scale = quantize(launch, target, x)
            self.exact_a = self.a.double() * self.a_scale

    def routed(self, alignment: Alignment, tile: Tile, rows: int, routing: Tensor | None) -> Tensor:
        return grouped_gemm(
            launch, self.a, self.a_scale, self.b, alignment, tile, BF16, rows, routing
        )


def expected(
    a: Tensor, b: Tensor, experts_TK: Tensor, share: int, routing: Tensor | None
) -> Tensor:
    rows = a.repeat_interleave(share, 0)
    flat = experts_TK.flatten().long()
    y = torch.empty(len(flat), b.shape[1], dtype=b.dtype)
    for expert in flat.unique():
        y[flat == expert] = rows[flat == expert] @ b[expert].T
    return y if routing is None else y * routing.to(y.dtype)[:, None]


def check(
    kind: str, target: Target, experts_TK: Tensor, e: int, n: int, k: int, tile: Tile = TILE
) -> None:
    """The first product, then one of its shape with a row for each choice and routing weights."""
    tokens, chosen = experts_TK.shape
    alignment = align(launch, experts_TK, e, tile.block_m)
    rows = tokens * chosen
    routing = torch.rand(rows, generator=torch.Generator().manual_seed(3)) + 0.5
    for share, weights in ((chosen, None), (1, routing)):
        product = Product(kind, target, rows // share, e, n, k)
        got = product.routed(alignment, tile, rows, weights)
        exact = expected(product.exact_a, product.exact_b, experts_TK, share, weights)
        plain = expected(
            product.exact_a.to(BF16), product.exact_b.to(BF16), experts_TK, share, weights
        )
        assert faults(got, plain, exact) == [], f"{share=}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(384, 256), (256, 192), (192, 176), (352, 352), (96, 704)])
def test_widths_of_tensor_parallelism(kind: str, n: int, k: int) -> None:
    check(kind, TARGETS[0], choices(3, "spread", 4, 2), 4, n, k)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_dialect(kind: str) -> None:
    check(kind, TARGETS[1], choices(3, "spread", 4, 2), 4, 192, 176)


@pytest.mark.parametrize("tokens", [1, 16, 17, 257])
@pytest.mark.parametrize("how", ["spread", "same"])
def test_numbers_of_tokens(tokens: int, how: str) -> None:
    """Spread over 6 experts of which some stay empty, or every token on the same two."""
    tile = Tile(16, 64, 128) if tokens < 100 else Tile(128, 64, 128, group_m=2)
    check("w8a8 channel", TARGETS[0], choices(tokens, how, 6, 2), 6, 64, 128, tile)


def test_one_expert_for_all_tokens() -> None:
    check("bf16", TARGETS[0], torch.full((33, 1), 2, dtype=torch.int32), 4, 64, 128)


@pytest.mark.parametrize("group_m", [1, 2, 3, 8])
def test_every_tile_is_computed_in_any_order(group_m: int) -> None:
    tile = Tile(16, 64, 64, group_m)
    check("bf16", TARGETS[0], choices(33, "spread", 3, 1), 3, 192, 64, tile)


def test_a_step_narrower_than_a_block_of_scales() -> None:
    check("w8a8 block", TARGETS[0], choices(3, "spread", 4, 2), 4, 192, 352, Tile(16, 256, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_layer_with_bias(kind: str) -> None:
    product = Product(kind, TARGETS[0], 17, 1, 40, 72)
    bias = normal(40, seed=5).to(BF16)
    got = gemm(launch, product.a, product.a_scale, product.b, Tile(16, 64, 64), BF16, bias)
    exact = product.exact_a @ product.exact_b[0].T + bias.double()
    plain = product.exact_a.to(BF16) @ product.exact_b[0].to(BF16).T + bias
    assert faults(got, plain, exact) == []


def test_rows_without_a_tile_and_columns_beyond_the_width_are_not_written() -> None:
    """Experts 4 and 5 belong to another rank: their rows keep what was there."""
    experts = torch.tensor([[0, 4], [5, 1]], dtype=torch.int32)
    alignment = align(launch, experts, 4, 16)
    assert alignment.experts.tolist() == [0, 1, -1, -1]
    product = Product("bf16", TARGETS[0], 2, 4, 40, 64)
    got = product.routed(alignment, Tile(16, 64, 64), 4, None)
    for row, (token, expert) in {0: (0, 0), 3: (1, 1)}.items():
        exact = product.exact_b[expert] @ product.exact_a[token]
        assert torch.allclose(got[row].double(), exact, rtol=2**-7, atol=1e-2)


def test_combine_sums_in_float32() -> None:
    x = torch.cat([torch.full((1, 70), 256.0), torch.full((3, 70), 1.0)]).to(BF16)
    experts = torch.tensor([[0, 1, 2, 0]] * 2, dtype=torch.int32)
    got = combine(launch, torch.cat([x, -x]), experts, 3)
    assert got[0].tolist() == [torch.tensor(259.0).to(BF16)] * 70  # in bf16 steps: 256
    assert torch.equal(got[1], -got[0])


def test_combine_leaves_out_what_other_ranks_compute() -> None:
    x = torch.arange(1, 9).view(8, 1).expand(8, 70).to(BF16).contiguous()
    experts = torch.tensor([[0, -1, 2, 3], [-7, 3, 160, 4]], dtype=torch.int32)
    x[[1, 3, 4, 5, 6, 7]] = torch.nan
    assert combine(launch, x, experts, 3)[:, 0].tolist() == [4.0, 0.0]
