"""Kernels are compiled as for the arguments a server would pass."""

from typing import Any

import pytest
import torch

from glm_portable.errors import UsageError
from glm_portable.virtual.codegen import CHIPS, compile_for, inspect
from tests.virtual.codegen.small_kernels import copy, matmul, matmul_args

GIB = 1 << 30


def parameters(arguments: dict[str, Any], target: str = "gfx942") -> str:
    """The line of Triton's GPU-level form that declares the kernel's parameters."""
    ttgir = compile_for(copy, arguments, CHIPS[target], {"num_warps": 1}).ttgir
    return next(line for line in ttgir.splitlines() if "tt.func public" in line)


def args(x: torch.Tensor, n: int) -> dict[str, Any]:
    return {"x_ptr": x, "out_ptr": x, "n": n, "BLOCK": 256}


def test_what_the_compiler_may_assume_follows_from_the_arguments() -> None:
    x = torch.empty(4096, dtype=torch.bfloat16, device="meta")
    aligned = parameters(args(x, 4096))
    assert aligned.count("tt.divisibility = 16") == 3
    assert aligned.count("tt.pointer_range = 32") == 2
    odd = parameters(args(x[1:], 4095))
    assert "tt.divisibility" not in odd and odd.count("tt.pointer_range = 32") == 2
    assert "%n" not in parameters(args(x, 1)), "an integer equal to 1 is a constant"


def test_a_tensor_beyond_2_gib_has_no_32_bit_range_and_costs_no_memory() -> None:
    large = torch.empty(160, 3072, 5120, dtype=torch.float8_e4m3fn, device="meta")
    assert large.nbytes > 2 * GIB
    text = parameters(args(large, 4096))
    assert text.count("tt.divisibility = 16") == 3 and "tt.pointer_range" not in text


def test_ranges_are_for_amd_alone() -> None:
    x = torch.empty(4096, device="meta")
    assert "tt.pointer_range" not in parameters(args(x, 4096), "sm_90")


def test_real_and_meta_tensors_give_the_same_code() -> None:
    real, meta = (torch.zeros(4096, device=device) for device in ("cpu", "meta"))
    codes = {inspect(copy, args(x, 4096), "gfx942").instructions for x in (real, meta)}
    assert len(codes) == 1


def test_unusable_input_is_named() -> None:
    x = torch.empty(16, device="meta")
    with pytest.raises(UsageError, match="'gfx90c'.*gfx942, gfx950, sm_90, sm_100"):
        inspect(copy, args(x, 16), "gfx90c")
    with pytest.raises(UsageError, match="not a kernel"):
        inspect(print, {}, "gfx942")
    with pytest.raises(UsageError, match="copy.*out_ptr"):
        inspect(copy, {"x_ptr": x}, "gfx942")
    with pytest.raises(UsageError, match="num_wraps"):
        inspect(copy, args(x, 16), "gfx942", {"num_wraps": 4})


def test_options_reach_the_compiler() -> None:
    given = matmul_args(torch.bfloat16, (64, 64, 64))
    by_size = {
        size: inspect(matmul, given, "gfx942", {"num_warps": 4, "matrix_instr_nonkdim": size})
        for size in (16, 32)
    }
    assert set(by_size[16].matrix) == {"16x16x16_bf16"}
    assert set(by_size[32].matrix) == {"32x32x8_bf16"}
    assert inspect(matmul, given, "gfx942", {"num_warps": 8}).num_warps == 8
