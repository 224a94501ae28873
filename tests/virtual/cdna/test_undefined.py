"""Where a value that nothing defined spreads, and where it faults."""

from collections.abc import Callable, Mapping

import pytest

from glm_portable.virtual.cdna.faults import UndefinedValue
from glm_portable.virtual.cdna.operands import EXEC, SGPR, VCC
from glm_portable.virtual.cdna.state import Wave
from tests.virtual.cdna.single import (
    M32,
    new_wave,
    poison,
    set_exec,
    set_scalar,
    set_vcc,
    set_vector,
    step,
)

ALL = (1 << 64) - 1


def vectors(undefined: Mapping[int, int], arch: str = "gfx942") -> Wave:
    """v1 to v40 defined but for these lanes."""
    wave = new_wave(arch)
    for register in range(1, 41):
        set_vector(wave, register, 3 + register)
    for register, mask in undefined.items():
        poison(wave, register, mask)
    return wave


A, B, C = 0xF0F0, 0xFF00_0000_0000_0000, 0x5

SPREADS = {
    "v_add_u32_e32 v0, v1, v2": A | B,
    "v_mov_b32_e32 v0, v2": B,
    "v_fma_f32 v0, v1, v2, v3": A | B | C,
    "v_fmac_f32_e32 v1, v2, v4": A | B,
    "v_max3_f32 v0, v1, v4, v3": A | C,
    "v_pack_b32_f16 v0, v1, v2": A | B,
    "v_cvt_f32_f16_e32 v0, v3": C,
    "v_cvt_pk_fp8_f32 v0, v1, v2": A | B,
    "v_cvt_f32_fp8_e32 v0, v1": A,
    "v_perm_b32 v0, v4, v4, v2": B,
    "v_mbcnt_lo_u32_b32 v0, v1, v4": A,
    "v_pk_max_i16 v0, v1, v2": A | B,
    "v_fma_mix_f32 v0, v1, v4, v3": A | C,
    "v_accvgpr_write_b32 a0, v1": A,
    "v_add_f16_e32 v0, v1, v2": A | B,
}


@pytest.mark.parametrize("text", SPREADS)
def test_lanes_spread(text: str) -> None:
    wave = vectors({1: A, 2: B, 3: C})
    step(wave, text)
    target = 256 if "accvgpr" in text else 1 if "fmac" in text else 0
    assert wave.undefined[target] == SPREADS[text]


def test_a_result_is_undefined_only_where_it_is_written() -> None:
    wave = vectors({0: 0xFF, 1: 0xF0F})
    set_exec(wave, 0xF0)
    step(wave, "v_mov_b32_e32 v0, v4")
    assert wave.undefined[0] == 0x0F
    step(wave, "v_mov_b32_e32 v0, v1")
    assert wave.undefined[0] == 0x0F  # EXEC covers no undefined lane of v1
    set_exec(wave, 0xFFF)
    step(wave, "v_mov_b32_e32 v0, v1")
    assert wave.undefined[0] == 0xF0F


def test_an_undefined_scalar_spreads_to_every_lane() -> None:
    wave = vectors({})
    step(wave, "v_add_u32_e32 v0, s20, v1")
    assert wave.undefined[0] == ALL
    set_scalar(wave, 20, 1)
    step(wave, "v_add_u32_e32 v0, s20, v1")
    assert wave.undefined[0] == 0


def test_pairs() -> None:
    """Of an operation that moves information upwards, the low word depends on low words alone."""
    wave = vectors({3: A, 5: B})
    step(wave, "v_lshl_add_u64 v[0:1], v[2:3], 2, v[6:7]")
    assert (wave.undefined[0], wave.undefined[1]) == (0, A)
    step(wave, "v_mad_u64_u32 v[0:1], vcc, v8, v9, v[4:5]")
    assert (wave.undefined[0], wave.undefined[1]) == (0, B)
    assert wave.undefined_bits(VCC, 2) == B
    step(wave, "v_lshrrev_b64 v[0:1], 3, v[2:3]")
    assert (wave.undefined[0], wave.undefined[1]) == (A, A)
    step(wave, "v_pk_add_f32 v[0:1], v[2:3], v[6:7]")
    assert (wave.undefined[0], wave.undefined[1]) == (0, A)
    step(wave, "v_pk_mul_f32 v[0:1], v[2:3], v[4:5] op_sel:[1,0] op_sel_hi:[0,1]")
    assert (wave.undefined[0], wave.undefined[1]) == (A, B)
    step(wave, "v_pk_mov_b32 v[0:1], v[2:3], v[4:5] op_sel:[1,0]")
    assert (wave.undefined[0], wave.undefined[1]) == (A, 0)


def test_selection_takes_only_the_chosen_source() -> None:
    wave = vectors({1: A, 2: B})
    set_vcc(wave, 0)
    step(wave, "v_cndmask_b32_e32 v0, v1, v2, vcc")
    assert wave.undefined[0] == A
    set_vcc(wave, ALL)
    step(wave, "v_cndmask_b32_e32 v0, v1, v2, vcc")
    assert wave.undefined[0] == B
    wave.write_scalars(VCC, 2, 0, 0xF)  # the mask itself is undefined in four lanes
    step(wave, "v_cndmask_b32_e32 v0, v4, v5, vcc")
    assert wave.undefined[0] == 0xF


def test_comparison_and_carry() -> None:
    wave = vectors({1: A})
    set_exec(wave, 0xFF)
    step(wave, "v_cmp_lt_u32_e64 s[2:3], v1, v2")
    assert wave.undefined_bits(SGPR + 2, 2) == A & 0xFF  # in lanes that are off, a defined 0
    step(wave, "v_add_co_u32_e64 v0, s[4:5], v1, v2")
    assert wave.undefined_bits(SGPR + 4, 2) == A & 0xFF
    wave.write_scalars(VCC, 2, 0, 0x30)
    step(wave, "v_addc_co_u32_e32 v0, vcc, v2, v3, vcc")
    assert wave.undefined[0] & 0xFF == 0x30 and wave.undefined_bits(VCC, 2) == 0x30
    wave.write_scalars(VCC, 2, 0, 0x3)
    step(wave, "v_div_fmas_f32 v0, v2, v3, v4")
    assert wave.undefined[0] & 0xFF == 0x3


def test_dpp_moves_undefined_lanes() -> None:
    wave = vectors({0: 0, 1: 1 << 4, 2: 1 << 9})
    set_vector(wave, 0, 0)
    step(wave, "v_add_u32_dpp v0, v1, v2 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1")
    assert wave.undefined[0] == 1 << 5 | 1 << 9
    step(wave, "v_cndmask_b32_dpp v0, v1, v3, vcc row_shr:1 row_mask:0xf bank_mask:0xf")
    assert wave.undefined[0] & ~wave.undefined_bits(VCC, 2) == 0  # VCC is undefined here
    set_vcc(wave, 0)
    set_vector(wave, 0, 0)
    step(wave, "v_cndmask_b32_dpp v0, v1, v3, vcc row_shr:1 row_mask:0xf bank_mask:0xf")
    assert wave.undefined[0] == 1 << 5


def test_lanes_to_scalars_and_back() -> None:
    wave = vectors({1: 1 << 5})
    step(wave, "v_readlane_b32 s2, v1, 5")
    step(wave, "v_readlane_b32 s3, v1, 6")
    assert (wave.undefined[SGPR + 2], wave.undefined[SGPR + 3]) == (M32, 0)
    set_exec(wave, 1 << 5)
    step(wave, "v_readfirstlane_b32 s3, v1")
    assert wave.undefined[SGPR + 3] == M32
    set_exec(wave, ALL)
    step(wave, "v_writelane_b32 v4, s2, 7")
    assert wave.undefined[4] == 1 << 7
    step(wave, "v_writelane_b32 v4, 12, 7")
    assert wave.undefined[4] == 0
    with pytest.raises(UndefinedValue, match="lane number"):
        step(wave, "v_readlane_b32 s4, v4, s2")
    with pytest.raises(UndefinedValue, match="lane number"):
        step(wave, "v_writelane_b32 v4, 1, s2")


@pytest.mark.parametrize("group", [16, 32])
def test_swaps_move_undefined_lanes(group: int) -> None:
    wave = vectors({1: 1 << 3 | 1 << group + 2, 2: 1 << 5 | 1 << group + 7}, "gfx950")
    step(wave, f"v_permlane{group}_swap_b32_e32 v1, v2")
    assert wave.undefined[1] == 1 << 3 | 1 << group + 5
    assert wave.undefined[2] == 1 << 2 | 1 << group + 7
    wave = vectors({1: 0xF0, 2: 0xFF00})
    set_exec(wave, 0xFFF)
    step(wave, "v_swap_b32 v1, v2")
    assert (wave.undefined[1], wave.undefined[2]) == (0xF00, 0xF0F0)


def test_matrix_rows_and_columns() -> None:
    """An element of A spoils its row of D, one of B its column, one of C itself."""
    wave = vectors({2: 1 << 18, 8: 1 << 33})  # A[2, 4:6] and C[10, 1]
    step(wave, "v_mfma_f32_16x16x16_bf16 v[10:13], v[2:3], v[4:5], v[6:9]")
    # row 2 is register 2 of lanes 0 to 15; C's element is its lane of register 2
    assert [wave.undefined[10 + i] for i in range(4)] == [0, 0, 0xFFFF | 1 << 33, 0]
    wave = vectors({5: 1 << 50})
    step(wave, "v_mfma_f32_16x16x16_bf16 v[10:13], v[2:3], v[4:5], 0")
    column = sum(1 << 16 * g + 2 for g in range(4))
    assert [wave.undefined[10 + i] for i in range(4)] == [column] * 4


BRANCHES = {
    "s_cbranch_scc0 label": "SCC",
    "s_cbranch_scc1 label": "SCC",
    "s_cbranch_vccz label": "VCC",
    "s_cbranch_vccnz label": "VCC",
}


@pytest.mark.parametrize("text", BRANCHES)
def test_branches_on_undefined_conditions_fault(text: str) -> None:
    with pytest.raises(UndefinedValue, match=BRANCHES[text]):
        step(new_wave(), text)


# Undefined values


def undefined_wave(values: dict[int, int], unknown: dict[int, int]) -> Wave:
    wave = new_wave()
    wave.scc, wave.scc_undefined = 0, False
    for register, value in values.items():
        set_scalar(wave, register, value)
        wave.undefined[SGPR + register] = unknown.get(register, 0)
    return wave


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("s_add_u32 s2, s4, s5", M32),
        ("s_mov_b32 s2, s4", 0xF0),
        ("s_not_b32 s2, s4", 0xF0),
        ("s_xor_b32 s2, s4, s5", 0xF0),
        ("s_and_b32 s2, s4, s5", 0x30),
        ("s_andn2_b32 s2, s4, s5", 0xC0),
        ("s_or_b32 s2, s4, s5", 0xC0),
        ("s_orn2_b32 s2, s4, s5", 0x30),
        ("s_lshl_b32 s2, s4, s5", M32),
    ],
)
def test_undefined_bits_spread(text: str, unknown: int) -> None:
    """A defined 0 decides an and, a defined 1 an or; arithmetic spreads to every bit."""
    wave = undefined_wave({4: 0x55, 5: 0x33}, {4: 0xF0})
    step(wave, text)
    assert wave.undefined[SGPR + 2] == unknown
    assert wave.scc_undefined == (text.split()[0] != "s_mov_b32")
    step(wave, text.replace("s4", "s5"))
    assert wave.undefined[SGPR + 2] == 0 and not wave.scc_undefined


BITWISE: dict[str, Callable[[int, int], int]] = {
    "s_and_b32": lambda a, b: a & b,
    "s_andn2_b32": lambda a, b: a & ~b,
    "s_or_b32": lambda a, b: a | b,
    "s_orn2_b32": lambda a, b: a | ~b,
    "s_xor_b32": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("name", BITWISE)
def test_a_bit_is_undefined_where_its_sources_bits_decide_it(name: str) -> None:
    """Of the 16 ways two bits can be 0, 1 or undefined, each in one place of the registers."""
    a, unknown_a, b, unknown_b = 0b1010_1010_1010_1010, 0xFF00, 0b1100_1100_1100_1100, 0xF0F0
    wave = undefined_wave({4: a, 5: b}, {4: unknown_a, 5: unknown_b})
    step(wave, f"{name} s2, s4, s5")
    expected = 0
    for i in range(16):
        may_be_a = (0, 1) if unknown_a >> i & 1 else (a >> i & 1,)
        may_be_b = (0, 1) if unknown_b >> i & 1 else (b >> i & 1,)
        results = {BITWISE[name](x, y) & 1 for x in may_be_a for y in may_be_b}
        expected |= (len(results) > 1) << i
    assert wave.undefined[SGPR + 2] == expected


def test_undefined_conditions() -> None:
    wave = undefined_wave({4: 1, 5: 2}, {4: 1})
    step(wave, "s_cmp_lt_u32 s5, s4")
    assert wave.scc_undefined
    step(wave, "s_cselect_b32 s2, s5, s5")
    assert wave.undefined[SGPR + 2] == M32
    step(wave, "s_addc_u32 s2, s5, s5")
    assert wave.undefined[SGPR + 2] == M32 and wave.scc_undefined
    step(wave, "s_bitcmp1_b32 s5, s4")
    assert wave.scc_undefined
    step(wave, "s_cmp_lt_u32 s5, 3")
    assert not wave.scc_undefined
    step(wave, "s_cselect_b32 s2, s5, s4")  # only the chosen source counts
    assert wave.undefined[SGPR + 2] == 0
    step(wave, "s_cselect_b32 s2, s4, s5")
    assert wave.undefined[SGPR + 2] == 1


def test_exec_from_an_undefined_value_faults() -> None:
    wave = undefined_wave({4: 5, 5: 0}, {4: 0xF00})
    with pytest.raises(UndefinedValue, match="EXEC"):
        step(wave, "s_xor_saveexec_b64 s[2:3], s[4:5]")
    with pytest.raises(UndefinedValue, match="EXEC"):
        step(wave, "s_mov_b64 exec, s[4:5]")
    wave = undefined_wave({4: 5, 5: 0}, {4: 0xF00})
    wave.write_scalars(EXEC, 2, 0xFF)  # the undefined bits belong to lanes that are off
    step(wave, "s_and_saveexec_b64 s[2:3], s[4:5]")
    assert wave.exec == 5
