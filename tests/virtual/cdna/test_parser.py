"""Assembly text: operands, modifiers, encodings, directives; errors say what is wrong and where."""

import pytest

from glm_portable.virtual.cdna.chips import chip_named
from glm_portable.virtual.cdna.decode import decode, decode_text
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.operands import AGPR, EXEC, M0, SGPR, VCC, Operand, parse_operand
from glm_portable.virtual.cdna.parser import parse, parse_instruction
from tests.virtual.cdna.single import refused

REGISTERS = {
    "v0": ("vector", 0, 1),
    "v255": ("vector", 255, 1),
    "v[4:7]": ("vector", 4, 4),
    "a0": ("vector", AGPR, 1),
    "a[240:255]": ("vector", AGPR + 240, 16),
    "s0": ("scalar", SGPR, 1),
    "s[100:101]": ("scalar", SGPR + 100, 2),
    "vcc": ("scalar", VCC, 2),
    "vcc_lo": ("scalar", VCC, 1),
    "vcc_hi": ("scalar", VCC + 1, 1),
    "m0": ("scalar", M0, 1),
    "exec": ("scalar", EXEC, 2),
    "exec_lo": ("scalar", EXEC, 1),
    "exec_hi": ("scalar", EXEC + 1, 1),
}


@pytest.mark.parametrize("text", REGISTERS)
def test_registers(text: str) -> None:
    operand = parse_operand(text)
    kind, register, count = REGISTERS[text]
    assert (operand.kind, operand.register, operand.count) == (kind, register, count)
    assert list(operand.registers) == list(range(register, register + count))


def test_the_numbering_is_the_isa_s() -> None:
    assert (VCC - SGPR, M0 - SGPR, EXEC - SGPR) == (106, 124, 126)


@pytest.mark.parametrize(
    "text", ["v256", "a256", "s102", "s[101:102]", "v[3:2]", "v[255:256]", "-v300"]
)
def test_registers_that_do_not_exist(text: str) -> None:
    with pytest.raises(UnsupportedInstruction, match="is no register"):
        parse_operand(text)


@pytest.mark.parametrize(
    ("text", "negate", "absolute", "extend"),
    [
        ("v1", False, False, False),
        ("-v1", True, False, False),
        ("|v1|", False, True, False),
        ("-|v1|", True, True, False),
        ("neg(s1)", True, False, False),
        ("abs(s1)", False, True, False),
        ("-abs(s1)", True, True, False),
        ("sext(v1)", False, False, True),
        ("neg(0)", True, False, False),
    ],
)
def test_input_modifiers(text: str, negate: bool, absolute: bool, extend: bool) -> None:
    operand = parse_operand(text)
    assert (operand.negate, operand.absolute, operand.extend) == (negate, absolute, extend)
    assert operand.modified == (negate or absolute or extend)


@pytest.mark.parametrize(
    ("text", "width", "bits"),
    [
        ("0", 32, 0),
        ("-1", 32, 0xFFFFFFFF),
        ("-16", 64, (1 << 64) - 16),
        ("64", 32, 64),
        ("0x7fc00000", 32, 0x7FC00000),
        ("0xffffffff", 64, 0xFFFFFFFF),
        ("1.0", 32, 0x3F800000),
        ("-0.5", 32, 0xBF000000),
        ("4.0", 64, 0x4010000000000000),
        ("0.15915494", 32, 0x3E22F983),
        ("1.0", 16, 0x3C00),
        ("-2.0", 16, 0xC000),
        ("-1", 16, 0xFFFF),
        ("0.15915494", 16, 0x3118),
    ],
)
def test_constants(text: str, width: int, bits: int) -> None:
    operand = parse_operand(text)
    assert not operand.is_register and not operand.registers
    assert operand.bits(width) == bits


def test_other_operands() -> None:
    assert parse_operand("off").kind == "off"
    for text in (".LBB0_3", "abs(v1", "v1)", "neg(v1", "|v1", "v1|", "sext(v1", "v[1:2"):
        assert parse_operand(text).kind == "symbol"
    assert parse_operand("src_shared_base") == Operand("symbol", "src_shared_base")
    with pytest.raises(UnsupportedInstruction, match="'off' is not a 32-bit constant"):
        parse_operand("off").bits(32)


@pytest.mark.parametrize("suffix", ["e32", "e64", "sdwa", "dpp"])
def test_encodings(suffix: str) -> None:
    instruction = parse_instruction(f"v_add_f32_{suffix} v0, v1, v2")
    assert (instruction.mnemonic, instruction.encoding) == ("v_add_f32", suffix)


def test_an_instruction_s_parts() -> None:
    text = "v_pk_fma_f32 v[0:1], v[2:3], s[4:5], 1.0 op_sel_hi:[1,1,0] neg_lo:[0,1,0] clamp"
    instruction = parse_instruction(text, line=12)
    assert instruction.mnemonic == "v_pk_fma_f32" and instruction.encoding == ""
    assert [o.text for o in instruction.operands] == ["v[0:1]", "v[2:3]", "s[4:5]", "1.0"]
    modifiers = instruction.modifiers
    assert modifiers.bits("op_sel_hi", 3, 1) == [1, 1, 0]
    assert modifiers.bits("op_sel", 3, 0) == [0, 0, 0]
    assert modifiers.left == ["clamp", "neg_lo"]
    assert modifiers.flag("clamp") and modifiers.bits("neg_lo", 3, 0) == [0, 1, 0]
    assert modifiers.left == [] and instruction.line == 12
    load = parse_instruction("global_load_dwordx4 v[0:3], v4, s[0:1] offset:-16 sc0 nt")
    assert load.modifiers.integer("offset") == -16 and load.modifiers.left == ["nt", "sc0"]


PROGRAM = """
\t.text
kernel:                                 ; @kernel
; %bb.0:
\ts_load_dwordx2 s[2:3], s[0:1], 0x0      ; a comment
.LBB0_1:
\ts_waitcnt vmcnt(0) & lgkmcnt(0)
\ts_branch .LBB0_1
.LBB0_2:
\ts_endpgm
\t.section\t.rodata,"a",@progbits
\t.long\t3
\t.amdhsa_kernel kernel
\t\t.amdhsa_next_free_vgpr 8
\t\t.amdhsa_accum_offset 8
\t.end_amdhsa_kernel
\t.amdgpu_metadata
---
amdhsa.kernels:
  - .name:           kernel
    .vgpr_count:     8
amdhsa.version:
  - 1
...

\t.end_amdgpu_metadata
"""


def test_a_program() -> None:
    program = parse(PROGRAM)
    names = [i.mnemonic for i in program.instructions]
    assert names == ["s_load_dwordx2", "s_waitcnt", "s_branch", "s_endpgm"]
    assert [i.line for i in program.instructions] == [5, 7, 8, 10]
    assert program.labels["kernel"] == 0 and program.labels[".LBB0_1"] == 1
    assert program.labels[".LBB0_2"] == 3
    assert program.directives == {"next_free_vgpr": 8, "accum_offset": 8}
    assert program.metadata == {".name": "kernel", ".vgpr_count": 8}
    assert parse("\ts_endpgm").metadata == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("\tV_ADD_F32 v0, v1, v2", "no instruction"),
        ("s_endpgm", "no instruction"),
        ("label: s_endpgm", "no instruction"),
        ("\t.long 0xbf810000", "no instruction"),
        ("\t.amdhsa_next_free_vgpr max(3, 4)", "not a number"),
        ("\tv_mov_b32 v256, 0", "v256 is no register"),
    ],
)
def test_lines_that_are_not_understood_are_refused(line: str, reason: str) -> None:
    with pytest.raises(UnsupportedInstruction, match=rf"line 2: .*{reason}"):
        parse(f"\n{line}\n")


def test_the_decoder_lists_up_to_eight_lines() -> None:
    text = "\n".join(f"\tv_unknown_{i} v0" for i in range(11))
    with pytest.raises(UnsupportedInstruction) as raised:
        decode_text(text, "gfx942")
    listed = raised.value.reason.splitlines()
    assert listed[0] == "line 1: v_unknown_0 v0: v_unknown_0 is not implemented"
    assert listed[7].startswith("line 8:") and listed[8:] == ["and 3 more"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v_add_f32 v0, v1", "operands are not its form"),
        ("v_add_f32 v0, v1, v2, v3", "operands are not its form"),
        ("v_add_f32 s0, v1, v2", "destination 's0'"),
        ("v_add_f32 v[0:1], v1, v2", "destination"),
        ("v_add_f32 v0, v[1:2], v2", "of 2 registers"),
        ("v_lshl_add_u64 v[0:1], v2, v3, v[4:5]", "of 1 registers"),
        ("v_add_f32 v0, v1, v2 foo:3", "modifier foo"),
        ("v_add_f32 v0, v1, v2 op_sel:[1,0,0]", "modifier op_sel"),
        ("v_add_f32 v0, src_scc, v2", "'src_scc' is not a 32-bit constant"),
        ("v_cmp_eq_u32_e64 v0, v1, v2", "destination 'v0'"),
        ("v_cndmask_b32 v0, v1, v2, v3", "as a lane mask"),
        ("v_cmp_xx_f32 vcc, v0, v1", "v_cmp_xx_f32 is not implemented"),
        ("v_cmp_lt_f64 vcc, v[0:1], v[2:3]", "not implemented"),
        ("v_cmpx_lt_f32 vcc, v0, v1", "not implemented"),
        ("image_load v0, v1", "image_load is not implemented"),
    ],
)
def test_refusals_name_what_is_wrong(text: str, reason: str) -> None:
    refused(text, reason)


@pytest.mark.parametrize(
    ("operand", "fits"),
    [
        ("v7", True),
        ("v8", False),
        ("v[6:7]", True),
        ("v[7:8]", False),
        ("a3", True),
        ("a4", False),
        ("s9", True),
        ("s10", False),
        ("vcc_lo", True),
    ],
)
def test_registers_beyond_the_allocation(operand: str, fits: bool) -> None:
    """8 vector registers, 4 accumulators behind them, 10 scalar registers."""
    sizes = {"next_free_vgpr": 12, "accum_offset": 8, "next_free_sgpr": 10}
    directives = "".join(f"\t.amdhsa_{name} {size}\n" for name, size in sizes.items())
    width = 64 if ":" in operand else 32
    target = "v[0:1]" if width == 64 else "v0"
    name = "v_accvgpr_read_b32" if operand.startswith("a") else f"v_mov_b{width}"
    program = parse(f"{directives}\t{name} {target}, {operand}\n")
    if fits:
        decode(program, chip_named("gfx942"))
    else:
        with pytest.raises(UnsupportedInstruction, match="line 4: .*beyond the registers"):
            decode(program, chip_named("gfx942"))


@pytest.mark.parametrize(
    "directive", ["float_denorm_mode_32 0", "float_round_mode_32 3", "ieee_mode 0", "dx10_clamp 0"]
)
def test_modes_that_are_not_simulated(directive: str) -> None:
    with pytest.raises(UnsupportedInstruction, match=directive):
        decode_text(f"\t.amdhsa_{directive}\n\ts_endpgm\n", "gfx942")
