"""A matrix product and a copy: small kernels with a known right answer about their code."""

# Triton has no types of its own, and a kernel's parameters are Triton's and not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr, b_ptr, c_ptr, K, a_stride, b_stride, c_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """c (M, N) = a (M, K) @ b (N, K).T, whole tiles only."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + m[:, None] * a_stride + k[None, :]
    b_ptrs = b_ptr + n[None, :] * b_stride + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, tl.cdiv(K, BLOCK_K)):
        total = tl.dot(tl.load(a_ptrs), tl.load(b_ptrs), total)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    tl.store(c_ptr + m[:, None] * c_stride + n[None, :], total.to(c_ptr.dtype.element_ty))


@triton.jit
def copy(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)


def matmul_args(
    dtype: torch.dtype, tile: tuple[int, int, int], rows: int = 1024, k: int = 4096, shift: int = 0
) -> dict[str, Any]:
    """Arguments on the meta device. shift: elements that a and b start behind an aligned address,
    with rows one element longer than K."""
    m, n, block_k = tile
    whole = torch.empty(rows * (k + 1) + 1, dtype=dtype, device="meta")
    x = whole[shift:]
    stride = k + shift
    out = torch.empty(rows, rows, dtype=torch.bfloat16, device="meta")
    sizes = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": block_k}
    strides = {"K": k, "a_stride": stride, "b_stride": stride, "c_stride": rows}
    return {"a_ptr": x, "b_ptr": x, "c_ptr": out, **strides, **sizes}
