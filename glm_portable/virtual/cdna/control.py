"""Program control: branches, waits, barriers, modes (CDNA3 ISA sections 4 and 12.5)."""

import re
from collections.abc import Callable

from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UndefinedValue, UnsupportedInstruction
from glm_portable.virtual.cdna.operands import EXEC, VCC
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.state import Wave

_CONDITIONS: dict[str, Callable[[Wave], bool]] = {
    "scc0": lambda wave: wave.scc == 0,
    "scc1": lambda wave: wave.scc == 1,
    "vccz": lambda wave: wave.vcc == 0,
    "vccnz": lambda wave: wave.vcc != 0,
    "execz": lambda wave: wave.exec == 0,
    "execnz": lambda wave: wave.exec != 0,
}
_WITHOUT_EFFECT = ("s_nop", "s_setprio", "s_sleep", "s_sched_barrier", "s_code_end")
_WAIT = re.compile(r"(vmcnt|lgkmcnt|expcnt)\((\d+)\)")
_OVERFLOW_MODE = re.compile(r"hwreg\(HW_REG_MODE,23,1\)")


def bind(instruction: Instruction, context: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if name in _WITHOUT_EFFECT:
        return lambda wave: None
    if name == "s_endpgm":
        return _end
    if name == "s_barrier":
        return _barrier
    if name == "s_waitcnt":
        return _bind_wait(instruction)
    if name == "s_branch" or name.startswith("s_cbranch_"):
        return _bind_branch(instruction, context)
    if name == "s_setreg_imm32_b32":
        return _bind_mode(instruction)
    return None


def _end(wave: Wave) -> None:
    wave.land_vector(0)
    wave.land_lgkm(0)
    wave.status = "ended"


def _barrier(wave: Wave) -> None:
    wave.status = "barrier"


def _bind_wait(instruction: Instruction) -> Execute:
    limits: dict[str, int] = {}
    for operand in instruction.operands:
        match = _WAIT.fullmatch(operand.text)
        if match is None:
            raise UnsupportedInstruction(f"s_waitcnt {operand.text}")
        limits[match[1]] = int(match[2])
    vector, lgkm = limits.get("vmcnt"), limits.get("lgkmcnt")

    def execute(wave: Wave) -> None:
        if vector is not None:
            wave.land_vector(vector)
        if lgkm is not None:
            wave.land_lgkm(lgkm)

    return execute


def _bind_branch(instruction: Instruction, context: Context) -> Execute:
    instruction.expect(1)
    label = instruction.operands[0].text
    if label not in context.labels:
        raise UnsupportedInstruction(f"branch to {label!r}, which is no label")
    target = context.labels[label]
    condition = instruction.mnemonic.removeprefix("s_cbranch_")
    if instruction.mnemonic == "s_branch":

        def jump(wave: Wave) -> None:
            wave.pc = target

        return jump
    if condition not in _CONDITIONS:
        raise UnsupportedInstruction(f"{instruction.mnemonic} is not implemented")
    taken, undefined = _CONDITIONS[condition], _undefined_condition(condition)

    def branch(wave: Wave) -> None:
        if undefined(wave):
            raise UndefinedValue(f"branch on undefined {condition.rstrip('nz01').upper()}")
        if taken(wave):
            wave.pc = target

    return branch


def _undefined_condition(condition: str) -> Callable[[Wave], bool]:
    if condition.startswith("scc"):
        return lambda wave: wave.scc_undefined
    register = VCC if condition.startswith("vcc") else EXEC
    return lambda wave: wave.undefined_bits(register, 2) != 0


def _bind_mode(instruction: Instruction) -> Execute:
    instruction.expect(2)
    register, value = instruction.operands
    if not _OVERFLOW_MODE.fullmatch(register.text):
        raise UnsupportedInstruction(f"write to {register.text}")
    clamp = bool(value.bits(32) & 1)

    def execute(wave: Wave) -> None:
        wave.fp16_overflow = clamp

    return execute
