"""From a program's text to functions, once; what has no meaning here is refused by name."""

import functools
import re
from collections.abc import Callable

from glm_portable.virtual.cdna import (
    atomics,
    control,
    convert,
    crosslane,
    ds,
    mfma,
    packed,
    scalar,
    vector,
    vmem,
)
from glm_portable.virtual.cdna.chips import Chip, chip_named
from glm_portable.virtual.cdna.decoded import Context, Decoded, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.operands import AGPR, FIRST_SPECIAL, SGPR, VCC
from glm_portable.virtual.cdna.parser import Instruction, Program, parse, refuse

Bind = Callable[[Instruction, Context], Execute | None]

_FAMILIES: tuple[tuple[str, Bind], ...] = (
    ("valu", vector.bind),
    ("valu", packed.bind),
    ("valu", convert.bind),
    ("valu", crosslane.bind),
    ("mfma", mfma.bind),
    ("salu", scalar.bind),
    ("control", control.bind),
    ("memory", vmem.bind),
    ("memory", atomics.bind),
    ("lds", ds.bind),
)
_KINDS = {"s_barrier": "barrier", "s_waitcnt": "wait"}
_IMPLICIT = {
    "v_div_fmas_f32": (VCC, VCC + 1),
    "s_cbranch_vccz": (VCC, VCC + 1),
    "s_cbranch_vccnz": (VCC, VCC + 1),
}
"""Registers that an instruction reads without naming them."""

_CDNA4 = re.compile(
    r"v_(permlane(16|32)_swap|bitop3|minimum3|maximum3|cvt_pk_(bf16|f16)_f32|cvt_scalef32)\w*"
)
"""What gfx942 lacks, of the vector instructions known here; matrix shapes are in mfma."""

_MODE = {
    "float_round_mode_32": 0,
    "float_round_mode_16_64": 0,
    "float_denorm_mode_32": 3,
    "float_denorm_mode_16_64": 3,
    "dx10_clamp": 1,
    "ieee_mode": 1,
    "fp16_overflow": 0,
}
"""The initial MODE that the semantics here are of: round to nearest even, denormals kept, clamping
of NaN to 0, signalling NaNs quieted by minimum and maximum."""


@functools.lru_cache(maxsize=256)
def decode_text(text: str, arch: str) -> tuple[Program, tuple[Decoded, ...]]:
    """Raises UnsupportedInstruction that lists every line not understood, up to eight."""
    program = parse(text)
    return program, decode(program, chip_named(arch))


def decode(program: Program, chip: Chip) -> tuple[Decoded, ...]:
    """Raises UnsupportedInstruction that lists every line not understood, up to eight."""
    context = Context(chip, program.labels)
    decoded, problems = [], _mode_problems(program.directives)
    for instruction in program.instructions:
        try:
            decoded.append(decode_instruction(instruction, context))
            _check_registers(instruction, program.directives)
        except UnsupportedInstruction as problem:
            problems.append(f"line {instruction.line}: {instruction.text}: {problem.reason}")
    refuse(problems)
    return tuple(decoded)


def decode_instruction(instruction: Instruction, context: Context) -> Decoded:
    """Raises UnsupportedInstruction for a mnemonic, operand or modifier without a meaning here."""
    if context.chip.name != "gfx950" and _CDNA4.fullmatch(instruction.mnemonic):
        raise UnsupportedInstruction(f"{instruction.mnemonic} is not on {context.chip.name}")
    for kind, bind in _FAMILIES:
        execute = bind(instruction, context)
        if execute is not None:
            if left := instruction.modifiers.left:
                raise UnsupportedInstruction(f"modifier {', '.join(left)} is not implemented")
            kind = _KINDS.get(instruction.mnemonic, kind)
            return Decoded(execute, kind, _touches(instruction, kind))
    raise UnsupportedInstruction(f"{instruction.mnemonic} is not implemented")


def _touches(instruction: Instruction, kind: str) -> frozenset[int]:
    """All registers named; but of a load its destination only as `Wave.issue` says."""
    loads = kind in ("memory", "lds") and _returns(instruction)
    named = instruction.operands[1:] if loads else instruction.operands
    implicit = _IMPLICIT.get(instruction.mnemonic, ())
    return frozenset((*implicit, *(r for operand in named for r in operand.registers)))


def _mode_problems(directives: dict[str, int]) -> list[str]:
    return [
        f".amdhsa_{name} {directives[name]}: only {value} is simulated"
        for name, value in _MODE.items()
        if directives.get(name, value) != value
    ]


def _returns(instruction: Instruction) -> bool:
    """Whether a memory instruction's first operand is written once it lands, and not read."""
    name, modifiers = instruction.mnemonic, instruction.modifiers.values
    if "_atomic_" in name:
        return name.startswith("global") and "sc0" in modifiers
    if name.startswith("ds_"):
        return any(part in name for part in ("read", "permute", "swizzle", "rtn"))
    return "load" in name and "_lds_" not in name and "lds" not in modifiers


def _check_registers(instruction: Instruction, directives: dict[str, int]) -> None:
    """Refuse a register beyond what the kernel's descriptor allocates."""
    vectors = directives.get("accum_offset", AGPR)
    accumulators = directives.get("next_free_vgpr", 2 * AGPR) - vectors
    scalars = directives.get("next_free_sgpr", VCC - SGPR)
    banks = (
        (0, vectors, AGPR),
        (AGPR, max(accumulators, 0), SGPR),
        (SGPR, scalars, FIRST_SPECIAL),
    )
    for operand in instruction.operands:
        for first, allocated, end in banks:
            last = operand.register + operand.count - 1
            if operand.is_register and first + allocated <= last < end:
                raise UnsupportedInstruction(f"{operand.text} is beyond the registers allocated")
