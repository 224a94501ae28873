"""Loops, instructions and types are read right off listings and compiled kernels."""

import math
import re
from dataclasses import replace

import pytest
import torch

from glm_portable.virtual.codegen import CHIPS, amd, compile_for, inspect, nvidia
from glm_portable.virtual.codegen.loops import hot_range
from glm_portable.virtual.codegen.metrics import Disagreement
from tests.virtual.codegen.small_kernels import copy, matmul, matmul_args

BF16, OCP, FNUZ = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz

AMD_NESTED = """
	v_mov_b32_e32 v0, 0
.LBB0_1:                                ; outer
	v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]
.LBB0_2:                                ; inner, in two blocks
	buffer_load_dwordx4 v[0:3], v9, s[0:3], 0 offen
	s_cbranch_execz .LBB0_3
	global_load_ubyte v4, v[10:11], off ; a masked load
.LBB0_3:
	s_waitcnt vmcnt(0) lgkmcnt(0)
	v_mfma_f32_32x32x64_f8f6f4 v[0:15], v[0:7], v[8:15], v[0:15] blgp:1
	v_add_u32_e32 v1, 1, v1
	v_mfma_f32_32x32x64_f8f6f4 v[0:15], v[0:7], v[8:15], v[0:15]
	s_barrier
	s_cbranch_scc1 .LBB0_2
	v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]
	v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]
	v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]
	s_cbranch_scc0 .LBB0_1
.LBB0_4:                                ; a loop without matrix work
	v_add_u32_e32 v1, 1, v1
	s_cbranch_scc1 .LBB0_4
	s_endpgm
	.section	.AMDGPU.csdata,"",@progbits
	v_not_code v0
"""

SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P5 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR14][R6.64], P3 ;
        /*0030*/                   LDG.E.U8 R4, desc[UR14][R2.64] ;
        /*0040*/                   LDG.E R4, desc[UR14][R2.64] ;
        /*0050*/                   IMAD.MOV.U32 R2, RZ, RZ, RZ ;
        /*0060*/                   UIADD3 UR5, UPT, UPT, UR5, 0x1, URZ ;
        /*0070*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR8], R24 ;
        /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0090*/               @P5 BRA `(.L_x_1) ;
.L_x_0:
        /*00a0*/                   EXIT ;
"""


def test_the_hot_loop_of_amd_assembly() -> None:
    listing = amd.parse(AMD_NESTED)
    body = [listing.instructions[i] for i in hot_range(listing, amd.is_matrix)]
    assert body[0].opcode == "buffer_load_dwordx4" and body[-1].target == "LBB0_2"
    assert len(body) == 9 and not any("v_not_code" in i.text for i in listing.instructions)
    loop = amd._loop(body)
    assert loop.matrix == {"32x32x64_f8f6f4": 2} and loop.matrix_cycles == 128
    assert (loop.valu, loop.barriers, loop.full_waits) == (1, 1, 1)
    assert loop.loads == {16: 1, 1: 1}
    assert loop.valu_per_matrix == 0.5 and loop.pressure == 4 / 128


def test_the_types_of_matrix_instructions() -> None:
    listing = amd.parse(AMD_NESTED)
    assert amd.dialects(listing.instructions) == {"bf16", "fp8", "bf8"}
    for text, kinds in {
        "v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[0:1], v[2:3], v[0:15]": {"fp8"},
        "v_mfma_f32_32x32x16_bf8_fp8 v[0:15], v[0:1], v[2:3], v[0:15]": {"bf8", "fp8"},
        "v_mfma_f32_32x32x8_bf16_1k v[0:15], v[0:1], v[2:3], v[0:15]": {"bf16"},
        "v_mfma_f32_32x32x2_f32 v[0:15], v0, v1, v[0:15]": {"f32"},
        "v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[0:3], v[4:7], v[0:3] cbsz:4 blgp:4": {"fp4"},
    }.items():
        assert amd.dialects(amd.parse("\t" + text).instructions) == kinds, text


def test_a_matrix_instruction_of_unknown_cost_is_an_error() -> None:
    body = amd.parse("\tv_mfma_f32_99x9x9_fp8_fp8 v0, v1, v2, v3").instructions
    with pytest.raises(KeyError, match="99x9x9"):
        amd._loop(body)


@pytest.mark.parametrize(
    "text, async_copies, loads",
    [
        ("global_load_lds_dwordx4 v[0:1], off", 1, {16: 1}),
        ("buffer_load_dwordx4 v0, s[0:3], 0 offen lds", 1, {16: 1}),
        ("buffer_load_dword v4, v0, s[0:3], 0 offen", 0, {4: 1}),
        ("global_load_short_d16_hi v4, v[0:1], off", 0, {2: 1}),
        ("buffer_load_ubyte_d16 v4, v0, s[0:3], 0 offen", 0, {1: 1}),
        ("buffer_store_dwordx4 v[0:3], v0, s[0:3], 0 offen", 0, {}),
        ("s_load_dwordx4 s[0:3], s[4:5], 0x0", 0, {}),
    ],
)
def test_loads(text: str, async_copies: int, loads: dict[int, int]) -> None:
    loop = amd._loop(amd.parse("\t" + text).instructions)
    assert (loop.async_copies, loop.loads) == (async_copies, loads)


def test_the_hot_loop_of_nvidia_machine_code() -> None:
    listing = nvidia.parse(SASS)
    body = [listing.instructions[i] for i in hot_range(listing, nvidia.is_matrix)]
    loop = nvidia._loop(body)
    assert loop.instructions == 8 and loop.matrix == {"QGMMA.64x128x32.F32.E4M3.E4M3": 1}
    assert loop.loads == {16: 1, 4: 1, 1: 1} and loop.async_copies == 1
    assert (loop.valu, loop.barriers) == (1, 1)


def test_code_behind_the_end_that_jumps_back_is_not_a_loop() -> None:
    """The slow path of a barrier's wait: it lies behind EXIT and returns into the loop."""
    lines = [".L_x_1:", "QGMMA.64x128x32.F32.E4M3.E4M3 R4, gdesc[UR4], R4", "@!P1 BRA `(.L_x_3)",
             ".L_x_2:", "QGMMA.64x128x32.F32.E4M3.E4M3 R4, gdesc[UR4], R4",
             "@P2 BRA `(.L_x_1)", "QGMMA.64x128x32.F32.E4M3.E4M3 R4, gdesc[UR4], R4",
             "QGMMA.64x128x32.F32.E4M3.E4M3 R4, gdesc[UR4], R4", "@P0 EXIT", "EXIT", ".L_x_3:",
             "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R5", "BRA `(.L_x_2)"]  # fmt: skip
    text = "\n".join(
        x if x[-1] == ":" else f"        /*{i:04x}*/  {x} ;" for i, x in enumerate(lines)
    )
    listing = nvidia.parse(text)
    assert len(listing.instructions) == 10
    assert hot_range(listing, nvidia.is_matrix) == range(4)


@pytest.mark.parametrize("target, dtype", [("gfx942", FNUZ), ("gfx950", OCP), ("gfx942", BF16)])
def test_matrix_work_in_the_loop_is_whole_tiles(target: str, dtype: torch.dtype) -> None:
    """Independent of any parser of loops: a step of K multiplies BLOCK_M x BLOCK_N x BLOCK_K."""
    tile = (64, 64, 128)
    metrics = inspect(matmul, matmul_args(dtype, tile), target, {"num_warps": 4})
    done = 0
    for name, count in metrics.loop.matrix.items():
        shape = re.match(r"(\d+)x(\d+)x(\d+)", name)
        assert shape
        done += math.prod(map(int, shape.groups())) * count * metrics.num_warps
    assert done and done % math.prod(tile) == 0


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_nvidia_types_and_tools(target: str) -> None:
    chip = CHIPS[target]
    fp8 = matmul_args(OCP, (64, 64, 64))
    made = compile_for(matmul, fp8, chip, {"num_warps": 4})
    metrics = nvidia.read(made)
    assert metrics.dialects == {"fp8"} and metrics.async_copies and metrics.spills == 0
    prefix = "QGMMA" if target == "sm_90" else "UTCQMMA"
    assert all(name.startswith(prefix) for name in metrics.matrix)
    assert 16 < metrics.registers < 255 and metrics.loop.loads[16]
    other = compile_for(copy, {"x_ptr": fp8["a_ptr"], "out_ptr": fp8["a_ptr"], "n": 4096,
                               "BLOCK": 256}, chip, {"num_warps": 1})  # fmt: skip
    with pytest.raises(Disagreement, match=f"ptxas says {metrics.registers} registers"):
        nvidia.read(replace(made, binary=other.binary))


def test_small_tiles_on_hopper_widen_fp8_to_f16() -> None:
    """wgmma wants 64 rows, and there is no other FP8 instruction in sm_90's Triton."""
    metrics = inspect(matmul, matmul_args(OCP, (16, 64, 64)), "sm_90", {"num_warps": 4})
    assert metrics.dialects == {"f16"}


def test_a_kernel_without_a_loop_is_its_own_hot_loop() -> None:
    x = torch.empty(4096, device="meta")
    arguments = {"x_ptr": x, "out_ptr": x, "n": 4096, "BLOCK": 256}
    metrics = inspect(copy, arguments, "gfx942", {"num_warps": 1})
    assert metrics.loop.loads == metrics.loads == {16: 1}
    assert metrics.dialects == frozenset() and metrics.loop.pressure == 0


def test_workgroups_are_limited_by_registers_and_by_shared_memory() -> None:
    gfx942, sm_90 = CHIPS["gfx942"], CHIPS["sm_90"]
    assert gfx942.waves(128) == 4 and gfx942.waves(129) == 3 and gfx942.waves(1) == 8
    assert gfx942.waves(16, scalars=101) == 7
    assert gfx942.workgroups(4, 0, num_warps=4) == 4
    assert gfx942.workgroups(8, 24_576, num_warps=4) == 2
    assert sm_90.waves(128) == 4 and sm_90.waves(24) == 16
    assert sm_90.workgroups(4, 100_000, num_warps=4) == 2
    assert sm_90.workgroups(16, sm_90.shared_limit, num_warps=4) == 1
