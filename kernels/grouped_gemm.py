"""Products of rows with the weight of each row's expert; with one expert, a plain linear layer.

Weights are bf16, or FP8 with a scale per output channel or per block of rows and columns;
activations are the model's type (FP8 weights are then widened: w8a16), or FP8 with a scale per
token (w8a8). Only `tl.dot` sees the codes; scales and sums are float32.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.align import Alignment
from glm_portable.kernels.launch import Launch
from glm_portable.kernels.tiles import Tile


@dataclass(frozen=True)
class Matrices:
    """The weights of E experts as the kernel takes them.

    data: (E, N, K) contiguous. scale: float32 (E, N, 1), or (E, N / rows, K / columns) rounded up
    when `block` gives the rows and columns of a block; None when `data` is not quantised.
    """

    data: Tensor
    scale: Tensor | None = None
    block: tuple[int, int] | None = None


@triton.jit
def _product(a, b, total):
    """a @ b + total; codes that meet a wider type are widened first."""
    if a.dtype != b.dtype:
        b = b.to(a.dtype)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit(do_not_specialize=("ROWS", "TILES"))  # other tokens are no reason to compile again
def grouped_gemm_kernel(
    a_ptr, b_ptr, c_ptr, a_scale_ptr, b_scale_ptr, bias_ptr, routing_ptr, rows_ptr, experts_ptr,
    ROWS, N, K, TILES, a_stride, b_scale_stride, b_scale_columns,
    SHARE: tl.constexpr, ROUTED: tl.constexpr, ROUTING: tl.constexpr, BIAS: tl.constexpr,
    A_SCALED: tl.constexpr, B_ROWS: tl.constexpr, B_COLUMNS: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile (BLOCK_M rows of one expert) x BLOCK_N columns of the result.

    SHARE: consecutive result rows that read one row of a (K for the first product, then 1).
    B_ROWS: 0 for weights without scales, 1 with one a channel, else the rows of a scale's block,
    which has B_COLUMNS columns.
    EVEN_K: BLOCK_K divides K; otherwise the last step is masked, and only that one.
    """
    pid = tl.program_id(0)
    columns = tl.cdiv(N, BLOCK_N)
    # Programs that share weights or rows run at about the same time: GROUP_M tiles a column.
    first = (pid // (GROUP_M * columns)) * GROUP_M
    height = tl.minimum(TILES - first, GROUP_M)
    tile = first + (pid % (GROUP_M * columns)) % height
    column = (pid % (GROUP_M * columns)) // height
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if ROUTED:
        expert = tl.load(experts_ptr + tile)
        if expert < 0:
            return
        row = tl.load(rows_ptr + offs_m)
        b_ptr += expert.to(tl.int64) * N * K
        b_scale_ptr += expert * b_scale_stride
        bias_ptr += expert * N
    else:
        row = offs_m
    live = row < ROWS
    # Rows and columns beyond the end read the first ones: no mask in the loop, and none is stored.
    source = tl.where(live, row, 0) // SHARE
    offs_n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    n = tl.where(offs_n < N, offs_n, 0)
    offs_k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + source[:, None].to(tl.int64) * a_stride + offs_k[None, :]
    b_ptrs = b_ptr + n[None, :] * K + offs_k[:, None]
    b_scales = b_scale_ptr
    if B_ROWS > 1 and B_ROWS % BLOCK_N == 0:  # all columns of the tile lie in one block
        b_scales += column * BLOCK_N // B_ROWS * b_scale_columns
    elif B_ROWS > 1:
        b_scales += (n // B_ROWS)[None, :] * b_scale_columns
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    a_start, b_start = a_ptrs, b_ptrs
    for step in range(0, K // BLOCK_K):
        a = tl.load(a_ptrs)
        b = tl.load(b_ptrs)
        if B_ROWS > 1:
            scale = tl.load(b_scales + step * BLOCK_K // B_COLUMNS)
            total += _product(a, b, tl.zeros_like(total)) * scale
        else:
            total = _product(a, b, total)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    if not EVEN_K:
        done = K // BLOCK_K * BLOCK_K
        a = tl.load(a_start + done, mask=offs_k[None, :] < K - done, other=0.0)
        b = tl.load(b_start + done, mask=offs_k[:, None] < K - done, other=0.0)
        if B_ROWS > 1:
            scale = tl.load(b_scales + done // B_COLUMNS)
            total += _product(a, b, tl.zeros_like(total)) * scale
        else:
            total = _product(a, b, total)
    if B_ROWS == 1:
        total *= tl.load(b_scale_ptr + n)[None, :]
    if A_SCALED:
        total *= tl.load(a_scale_ptr + source)[:, None]
    if BIAS:
        total += tl.load(bias_ptr + n).to(tl.float32)[None, :]
    if ROUTING:
        total *= tl.load(routing_ptr + tl.where(live, row, 0))[:, None]
    c_ptrs = c_ptr + row[:, None].to(tl.int64) * N + offs_n[None, :]
    value = total.to(c_ptr.dtype.element_ty)
    tl.store(c_ptrs, value, mask=live[:, None] & (offs_n[None, :] < N))


@triton.jit
def combine_kernel(x_ptr, experts_ptr, out_ptr, D, E, K: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sum of the rows of each token's K choices, in their order. Nobody wrote those of experts
    outside 0 to E - 1: they are not read."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(experts_ptr + token * K + k)
        width = tl.where((expert >= 0) & (expert < E), D, 0)
        x = tl.load(x_ptr + (token * K + k) * D + d, mask=d < width, other=0.0)
        total += x.to(tl.float32)
    tl.store(out_ptr + token * D + d, total.to(out_ptr.dtype.element_ty), mask=d < D)


def grouped_gemm(
    launch: Launch,
    a: Tensor,
    a_scale: Tensor | None,
    b: Matrices,
    alignment: Alignment,
    tile: Tile,
    dtype: torch.dtype,
    rows: int,
    routing: Tensor | None = None,
) -> Tensor:
    """(rows, N) in `dtype`: row i is a[i * len(a) / rows] @ data[expert of i].T, times routing[i].

    a: (rows or fewer, K). a_scale: float32, one a row of `a`, when its type is FP8.
    alignment: the rows of each tile and its expert, in tiles of `tile.block_m`.
    routing: float32, one a row. Rows that the alignment leaves out are not written.
    """
    assert alignment.block_m == tile.block_m and rows % len(a) == 0, f"{rows=} {len(a)=}"
    return _launch(launch, a, a_scale, b, alignment, tile, dtype, rows, routing, None)


def gemm(
    launch: Launch,
    a_TR: Tensor,
    a_scale: Tensor | None,
    b: Matrices,
    tile: Tile,
    dtype: torch.dtype,
    bias_N: Tensor | None = None,
) -> Tensor:
    """a @ data[0].T + bias, (T, N) in `dtype`: for weights that no vendor library multiplies."""
    if len(a_TR) == 0:
        return torch.empty(0, b.data.shape[1], dtype=dtype, device=a_TR.device)
    return _launch(launch, a_TR, a_scale, b, None, tile, dtype, len(a_TR), None, bias_N)


def combine(launch: Launch, x: Tensor, experts_TK: Tensor, count: int) -> Tensor:
    """Sum of every K consecutive rows, in float32, rounded once: (T, D).

    Rows whose expert is not one of the `count` here are left out, whatever they hold.
    """
    assert experts_TK.is_contiguous() and experts_TK.numel() == len(x), f"{experts_TK.shape=}"
    (tokens, k), width = experts_TK.shape, x.shape[1]
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(width))
    grid = (tokens, triton.cdiv(width, block))
    launch(
        combine_kernel, grid, x, experts_TK, out, width, count,
        K=k, BLOCK_D=block, options={"num_warps": 4},
    )  # fmt: skip
    return out


def _launch(
    launch: Launch,
    a: Tensor,
    a_scale: Tensor | None,
    b: Matrices,
    alignment: Alignment | None,
    tile: Tile,
    dtype: torch.dtype,
    rows: int,
    routing: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    n, k = b.data.shape[1:]
    assert a.shape[1] == k and a.stride(1) == 1, f"{a.shape=} {a.stride()=} {b.data.shape=}"
    assert b.data.is_contiguous() and (b.scale is None or b.scale.is_contiguous())
    assert b.block is None or b.block[1] % tile.block_k == 0, f"{b.block=} {tile=}"
    out = torch.empty(rows, n, dtype=dtype, device=a.device)
    tiles = triton.cdiv(rows, tile.block_m) if alignment is None else len(alignment.experts)
    scale = out if b.scale is None else b.scale
    b_rows, b_columns = b.block or (1, 1)
    launch(
        grouped_gemm_kernel,
        (tiles * triton.cdiv(n, tile.block_n),),
        a, b.data, out,
        out if a_scale is None else a_scale, scale,
        out if bias is None else bias, out if routing is None else routing,
        out if alignment is None else alignment.rows,
        out if alignment is None else alignment.experts,
        rows, n, k, tiles, a.stride(0),
        0 if b.scale is None else scale[0].numel(), 0 if b.scale is None else scale.shape[-1],
        SHARE=rows // len(a), ROUTED=alignment is not None, ROUTING=routing is not None,
        BIAS=bias is not None, A_SCALED=a_scale is not None,
        B_ROWS=0 if b.scale is None else b_rows, B_COLUMNS=b_columns,
        EVEN_K=k % tile.block_k == 0, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k, GROUP_M=tile.group_m, options=tile.options,
    )  # fmt: skip
    return out
