"""Every finding of the gate, provoked by a kernel that has the fault."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from glm_portable.virtual.codegen import CHIPS, Expectation, Metrics, gate, inspect
from tests.virtual.codegen.small_kernels import matmul, matmul_args

OCP, FNUZ, BF16 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.bfloat16
FP8 = Expectation(dialects=frozenset({"fp8"}))
WARPS = {"num_warps": 4, "num_stages": 2}


def build(
    dtype: torch.dtype,
    target: str,
    tile: tuple[int, int, int] = (64, 64, 64),
    options: Mapping[str, Any] = WARPS,
    **more: int,
) -> Metrics:
    return inspect(matmul, matmul_args(dtype, tile, **more), target, options)


def only(findings: list[str], text: str) -> bool:
    return len(findings) == 1 and text in findings[0] and findings[0].endswith(".")


@pytest.mark.parametrize("target", CHIPS)
def test_good_kernels_pass_on_every_chip(target: str) -> None:
    fp8 = FNUZ if target == "gfx942" else OCP
    assert gate(build(fp8, target, (64, 64, 128)), FP8) == []
    assert gate(build(BF16, target), Expectation(dialects=frozenset({"bf16"}))) == []


@pytest.mark.filterwarnings("ignore:.*fp8e4b8")  # on gfx950 Triton says so; on gfx942 it is silent
@pytest.mark.parametrize("target, dtype", [("gfx942", OCP), ("gfx950", FNUZ)])
def test_the_wrong_dialect_of_fp8_is_caught(target: str, dtype: torch.dtype) -> None:
    """It compiles, and multiplies f16 after thousands of instructions of conversion."""
    metrics = build(dtype, target)
    found = gate(metrics, Expectation(dialects=frozenset({"fp8"}), valu_per_matrix=4.0))
    assert any("has no matrix instruction for fp8" in f for f in found)
    assert any("multiplies f16" in f and "silent conversion" in f for f in found)
    assert any("VALU instructions for each matrix instruction" in f for f in found)


def test_a_kernel_without_matrix_instructions_is_caught() -> None:
    metrics = build(torch.float32, "sm_90", (16, 16, 16), {"num_warps": 1})
    assert any("no matrix instruction for bf16" in f for f in gate(metrics, Expectation({"bf16"})))


@pytest.mark.parametrize("target, unit", [("gfx942", "vector registers"), ("sm_90", "bytes")])
def test_spills_are_caught(target: str, unit: str) -> None:
    """256 x 128 sums in one wave are 512 registers a lane (AMD), 1,024 a thread (NVIDIA)."""
    options = {"num_warps": 1, "num_stages": 1}
    metrics = build(BF16, target, (256, 128, 16), options, k=64)
    assert metrics.spills > 0
    expected = Expectation(dialects=frozenset({"bf16"}), dword_loads=None)
    found = gate(metrics, expected)
    assert any(f"spills {metrics.spills} {unit}" in f for f in found)
    if metrics.scalar_spills:
        assert any(f"spills {metrics.scalar_spills} scalar registers" in f for f in found)


def test_shared_memory_beyond_the_limit_is_caught() -> None:
    """The compiler takes it without a word."""
    metrics = build(BF16, "gfx942", (128, 256, 128), {"num_warps": 8, "num_stages": 2})
    assert metrics.shared > 65_536
    found = gate(metrics, Expectation(dialects=frozenset({"bf16"})))
    assert any(f"{metrics.shared:,} bytes of shared memory" in f and "65,536" in f for f in found)
    assert metrics.workgroups == 0


@pytest.mark.parametrize("target", ["gfx942", "gfx950", "sm_90"])
def test_arguments_that_are_not_aligned_are_caught(target: str) -> None:
    dtype = FNUZ if target == "gfx942" else OCP
    metrics = build(dtype, target, (64, 64, 128), shift=1)
    found = gate(metrics, FP8)
    assert any("loads 1 byte at a time" in f and "divisible by 16" in f for f in found)


def test_operands_in_pieces_of_four_bytes_are_caught() -> None:
    """Rows of 4 elements more than a multiple of 16 leave 4-byte loads of FP8."""
    arguments = matmul_args(FNUZ, (64, 64, 128))
    arguments |= {"a_stride": 4096 + 4, "b_stride": 4096 + 4}
    metrics = inspect(matmul, arguments, "gfx942", WARPS)
    narrow = metrics.loop.loads.get(4, 0) + metrics.loop.loads.get(1, 0)
    assert narrow and gate(metrics, FP8)


def test_ceilings_and_floors() -> None:
    metrics = build(BF16, "gfx942", (128, 128, 64))
    good = Expectation(
        dialects=frozenset({"bf16"}),
        waves=metrics.waves,
        workgroups=metrics.workgroups,
        valu_per_matrix=metrics.loop.valu_per_matrix,
    )
    assert gate(metrics, good) == []
    more_waves = replace(good, waves=metrics.waves + 1)
    assert only(gate(metrics, more_waves), f"lets a SIMD hold {metrics.waves} waves")
    more_groups = replace(good, workgroups=metrics.workgroups + 1)
    assert only(gate(metrics, more_groups), f"hold {metrics.workgroups} workgroups")
    less = replace(good, valu_per_matrix=metrics.loop.valu_per_matrix * 0.99)
    assert only(gate(metrics, less), "VALU instructions for each matrix instruction")
