"""Branches, modes and waits, by what they do to one wave."""

import pytest

from glm_portable.virtual.cdna.decode import decode_instruction
from glm_portable.virtual.cdna.decoded import Context
from glm_portable.virtual.cdna.operands import EXEC, VCC
from glm_portable.virtual.cdna.parser import parse_instruction
from tests.virtual.cdna.single import new_wave, refused, step

TARGET = 77


@pytest.mark.parametrize(
    ("condition", "scc", "vcc", "mask", "taken"),
    [
        ("scc0", 0, 0, 1, True),
        ("scc0", 1, 0, 1, False),
        ("scc1", 1, 0, 1, True),
        ("scc1", 0, 0, 1, False),
        ("vccz", 0, 0, 1, True),
        ("vccz", 0, 1 << 63, 1, False),
        ("vccnz", 0, 1 << 63, 1, True),
        ("vccnz", 1, 0, 1, False),
        ("execz", 0, 0, 0, True),
        ("execz", 0, 0, 1 << 40, False),
        ("execnz", 0, 0, 1 << 40, True),
        ("execnz", 0, 0, 0, False),
    ],
)
def test_branches(condition: str, scc: int, vcc: int, mask: int, taken: bool) -> None:
    wave = new_wave()
    wave.pc, wave.scc, wave.scc_undefined = 5, scc, False
    wave.write_scalars(VCC, 2, vcc)
    wave.write_scalars(EXEC, 2, mask)
    step(wave, f"s_cbranch_{condition} label")
    assert wave.pc == (TARGET if taken else 5)
    step(wave, "s_branch label")
    assert wave.pc == TARGET


def test_ends_and_barriers() -> None:
    expected = {"s_nop 1": "running", "s_barrier": "barrier", "s_endpgm": "ended"}
    for text, status in expected.items():
        wave = new_wave()
        step(wave, text)
        assert wave.status == status


def test_fp16_overflow_mode() -> None:
    wave = new_wave()
    step(wave, "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1")
    assert wave.fp16_overflow
    step(wave, "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 0")
    assert not wave.fp16_overflow


@pytest.mark.parametrize(
    ("text", "landed"),
    [
        ("s_waitcnt vmcnt(0)", {"v": 3}),
        ("s_waitcnt vmcnt(2)", {"v": 1}),
        ("s_waitcnt vmcnt(3)", {"v": 0}),
        ("s_waitcnt lgkmcnt(0)", {"l": 2}),
        ("s_waitcnt lgkmcnt(1)", {"l": 1}),
        ("s_waitcnt vmcnt(1) lgkmcnt(0)", {"v": 2, "l": 2}),
        ("s_waitcnt vmcnt(63) & expcnt(0)", {}),
    ],
)
def test_waits(text: str, landed: dict[str, int]) -> None:
    wave, seen = new_wave(), []
    for i in range(3):
        wave.issue("vector", (10 + i,), lambda: seen.append("v"))
    for i in range(2):
        wave.issue("lds", (20 + i,), lambda: seen.append("l"))
    step(wave, text)
    assert {kind: seen.count(kind) for kind in set(seen)} == {k: n for k, n in landed.items() if n}


def test_implicit_registers_count_as_touched() -> None:
    """What reads VCC without naming it must wait for a load into it."""
    context = Context(new_wave().chip, {"label": 0})
    for text in ("v_div_fmas_f32 v0, v1, v2, v3", "s_cbranch_vccnz label"):
        decoded = decode_instruction(parse_instruction(text), context)
        assert {VCC, VCC + 1} <= decoded.touches


def test_refusals() -> None:
    refused("s_branch nowhere", "no label")
    refused("s_cbranch_cdbgsys .L1", "no label")
    refused("s_waitcnt vmcnt(0) foo(1)", "s_waitcnt foo")
    refused("s_waitcnt 0", "s_waitcnt 0")
    refused("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 2), 0", "write to hwreg")
    refused("s_setprio_x 1", "not implemented")
