"""The grouped product in every quantisation, on the widths that tensor parallelism leaves."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glm_portable.kernels import tiles
from glm_portable.kernels.align import Alignment, align
from glm_portable.kernels.grouped_gemm import Matrices, combine, gemm, grouped_gemm
from glm_portable.kernels.quantize import quantize
from glm_portable.kernels.tiles import Tile
from glm_portable.verify.cases.data import choices, normal, weight
from glm_portable.verify.metrics import faults
from tests.kernels.inputs import BF16, fp8, full, matrices
from tests.kernels.machine import Machine

OPTIONS = {"num_warps": 4, "num_stages": 2}
TILE = Tile(16, 64, 64, options=OPTIONS)
KINDS = [
    "bf16",
    pytest.param("w8a8 channel", marks=fp8),
    pytest.param("w8a8 block", marks=fp8),
    pytest.param("w8a16 channel", marks=fp8),
    pytest.param("w8a16 block", marks=fp8),
    "float32",
]


class Product:
    """Inputs of one kind: as the kernel takes them, and in float64 on the host."""

    def __init__(self, kind: str, machine: Machine, tokens: int, e: int, n: int, k: int) -> None:
        self.machine, self.dtype = machine, torch.float32 if kind == "float32" else BF16
        x = normal(tokens, k, outliers=True).to(self.dtype)
        self.a, self.exact_a, self.a_scale = machine.put(x), x.double(), None
        if kind in ("bf16", "float32"):
            data = weight(e, n, k, dtype=self.dtype).data
            self.b, self.exact_b = Matrices(machine.put(data)), data.double()
        else:
            block = (128, 128) if kind.endswith("block") else None
            self.b, self.exact_b = matrices(machine, e, n, k, block)
        if kind.startswith("w8a8"):
            self.a, self.a_scale = quantize(machine.launch, machine.target, self.a)
            self.exact_a = self.a.cpu().double() * self.a_scale.cpu()

    def routed(self, alignment: Alignment, tile: Tile, rows: int, routing: Tensor | None) -> Tensor:
        weights = None if routing is None else self.machine.put(routing)
        return grouped_gemm(
            self.machine.launch, self.a, self.a_scale, self.b, alignment, tile, self.dtype, rows,
            weights,
        )  # fmt: skip


def expected(
    a: Tensor, b: Tensor, experts_TK: Tensor, share: int, routing: Tensor | None
) -> Tensor:
    rows = a.repeat_interleave(share, 0)
    flat = experts_TK.flatten().long()
    y = torch.empty(len(flat), b.shape[1], dtype=b.dtype)
    for expert in set(flat.tolist()):
        y[flat == expert] = rows[flat == expert] @ b[expert].T
    return y if routing is None else y * routing.to(y.dtype)[:, None]


def check(
    machine: Machine, kind: str, experts_TK: Tensor, e: int, n: int, k: int, tile: Tile = TILE
) -> None:
    """The first product, then one of its shape with a row for each choice and routing weights."""
    tokens, chosen = experts_TK.shape
    alignment = align(machine.launch, machine.put(experts_TK), e, tile.block_m)
    rows = tokens * chosen
    routing = torch.rand(rows, generator=torch.Generator().manual_seed(3)) + 0.5
    for share, weights in ((chosen, None), (1, routing)):
        product = Product(kind, machine, rows // share, e, n, k)
        got = product.routed(alignment, tile, rows, weights)
        exact = expected(product.exact_a, product.exact_b, experts_TK, share, weights)
        a, b = (x.to(product.dtype) for x in (product.exact_a, product.exact_b))
        plain = expected(a, b, experts_TK, share, weights)
        assert faults(got.cpu(), plain, exact) == [], f"{share=}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "k"),
    [
        (192, 176),
        pytest.param(384, 256, marks=full),
        pytest.param(256, 192, marks=full),
        pytest.param(352, 352, marks=full),
        pytest.param(96, 704, marks=full),
        pytest.param(40, 72, marks=full),
    ],
)
def test_widths_of_tensor_parallelism(machine: Machine, kind: str, n: int, k: int) -> None:
    check(machine, kind, choices(3, "spread", 4, 2), 4, n, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [160, pytest.param(8, marks=full)])
@pytest.mark.parametrize("tokens", [5, pytest.param(64, marks=full), pytest.param(300, marks=full)])
def test_the_tiles_of_the_rule(machine: Machine, kind: str, experts: int, tokens: int) -> None:
    """As for the real models' experts under TP8, of which a few are kept and N is cut."""
    e, n, k = 3, 160, 192
    picks = choices(tokens, "spread", e, 2)
    dtype = machine.target.fp8 if kind.startswith("w8") else BF16
    tile = tiles.default(machine.target, experts, k, dtype, tokens * 8, 1)
    check(machine, kind, picks, e, n, k, tile)


@fp8
@pytest.mark.parametrize("kind", ["bf16", "w8a8 channel", "w8a8 block"])
@pytest.mark.parametrize("kdim", [16, pytest.param(32, marks=full)])
@pytest.mark.parametrize("stages", [3, pytest.param(1, marks=full), pytest.param(2, marks=full)])
@pytest.mark.parametrize("block_m", [32, pytest.param(128, marks=full)])
def test_options_of_the_compiler(
    machine: Machine, kind: str, kdim: int, stages: int, block_m: int
) -> None:
    """matrix_instr_nonkdim and num_stages give other code, and must not give other results."""
    options = {"num_warps": 8 if block_m == 128 else 4, "num_stages": stages}
    if machine.target.is_amd:
        options["matrix_instr_nonkdim"] = kdim
    tile = Tile(block_m, 64, 64, 2, options)
    check(machine, kind, choices(40, "spread", 2, 1), 2, 96, 272, tile)


@pytest.mark.parametrize("tokens", [1, 16, 17, pytest.param(257, marks=full)])
@pytest.mark.parametrize("how", ["spread", "same"])
@pytest.mark.parametrize("kind", ["bf16", pytest.param("w8a8 channel", marks=[fp8, full])])
def test_numbers_of_tokens(machine: Machine, kind: str, tokens: int, how: str) -> None:
    """Spread over 6 experts of which some stay empty, or every token on the same two."""
    tile = TILE if tokens < 100 else Tile(128, 64, 64, 2, OPTIONS | {"num_warps": 8})
    check(machine, kind, choices(tokens, how, 6, 2), 6, 64, 128, tile)


def test_one_expert_for_all_tokens(machine: Machine) -> None:
    check(machine, "bf16", torch.full((33, 1), 2, dtype=torch.int32), 4, 64, 128)


@pytest.mark.parametrize("group_m", [3, *(pytest.param(g, marks=full) for g in (1, 2, 8))])
def test_every_tile_is_computed_in_any_order(machine: Machine, group_m: int) -> None:
    tile = replace(TILE, group_m=group_m)
    check(machine, "bf16", choices(33, "spread", 3, 1), 3, 192, 64, tile)


@fp8
@pytest.mark.parametrize("block_k", [64, pytest.param(32, marks=full)])
def test_a_step_narrower_than_a_block_of_scales(machine: Machine, block_k: int) -> None:
    tile = Tile(16, 256, block_k, options=OPTIONS)
    check(machine, "w8a8 block", choices(3, "spread", 4, 2), 4, 192, 352, tile)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [17, pytest.param(1, marks=full)])
def test_a_plain_layer_with_bias(machine: Machine, kind: str, tokens: int) -> None:
    product = Product(kind, machine, tokens, 1, 40, 72)
    dtype = product.dtype
    bias = normal(40, seed=5).to(dtype)
    got = gemm(
        machine.launch, product.a, product.a_scale, product.b, TILE, dtype, machine.put(bias)
    )
    exact = product.exact_a @ product.exact_b[0].T + bias.double()
    plain = product.exact_a.to(dtype) @ product.exact_b[0].to(dtype).T + bias
    assert faults(got.cpu(), plain, exact) == []


def test_rows_without_a_tile_and_columns_beyond_the_width_are_not_written(
    machine: Machine,
) -> None:
    """Experts 4 and 5 belong to another rank: their rows keep what was there."""
    experts = torch.tensor([[0, 4], [5, 1]], dtype=torch.int32)
    alignment = align(machine.launch, machine.put(experts), 4, 16)
    assert alignment.experts.tolist() == [0, 1, -1, -1]
    product = Product("bf16", machine, 2, 4, 40, 64)
    got = product.routed(alignment, TILE, 4, None).cpu()
    for row, (token, expert) in {0: (0, 0), 3: (1, 1)}.items():
        exact = product.exact_b[expert] @ product.exact_a[token]
        assert torch.allclose(got[row].double(), exact, rtol=2**-7, atol=1e-2)


@fp8
@pytest.mark.parametrize("kind", ["bf16", "w8a8 channel"])
def test_a_row_has_the_same_bits_alone_in_a_crowd_and_again(machine: Machine, kind: str) -> None:
    """Each row is one token's, with one tile for all numbers of tokens."""
    picks = torch.tensor([[1], [0], [1], [2], [1]], dtype=torch.int32)
    product = Product(kind, machine, 5, 3, 96, 176)

    def run(rows: slice) -> Tensor:
        experts = machine.put(picks[rows].contiguous())
        alignment = align(machine.launch, experts, 3, 16)
        scale = None if product.a_scale is None else product.a_scale[rows]
        return grouped_gemm(
            machine.launch, product.a[rows], scale, product.b, alignment, TILE, BF16, len(experts)
        )

    crowd = run(slice(None))
    assert torch.equal(crowd, run(slice(None)))
    assert torch.equal(crowd[4:], run(slice(4, None)))


@pytest.mark.parametrize("k", [4, pytest.param(8, marks=full), pytest.param(1, marks=full)])
@pytest.mark.parametrize("width", [70, pytest.param(5120, marks=full)])
def test_combine_sums_in_float32(machine: Machine, k: int, width: int) -> None:
    x = torch.cat([torch.full((1, width), 256.0), torch.full((k - 1, width), 1.0)]).to(BF16)
    experts = machine.put((torch.arange(2 * k) % 3).view(2, k).to(torch.int32))
    got = combine(machine.launch, machine.put(torch.cat([x, -x])), experts, 3).cpu()
    assert torch.equal(got[0], x.float().sum(0).to(BF16))  # in bf16 steps: 256
    assert torch.equal(got[1], -got[0])


def test_combine_leaves_out_what_other_ranks_compute(machine: Machine) -> None:
    x = torch.arange(1, 9).view(8, 1).expand(8, 70).to(BF16).contiguous()
    experts = torch.tensor([[0, -1, 2, 3], [-7, 3, 160, 4]], dtype=torch.int32)
    x[[1, 3, 4, 5, 6, 7]] = torch.nan
    got = combine(machine.launch, machine.put(x), machine.put(experts), 3)
    assert got[:, 0].tolist() == [4.0, 0.0]
