"""From a program's text to functions, once; what has no meaning here is refused by name."""

import functools
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
from glm_portable.virtual.cdna.operands import AGPR, REGISTERS, SGPR
from glm_portable.virtual.cdna.parser import Instruction, Program, parse

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
_MOST_REPORTED = 8


@functools.lru_cache(maxsize=256)
def decode_text(text: str, arch: str) -> tuple[Program, tuple[Decoded, ...]]:
    """Raises UnsupportedInstruction that lists every line not understood, up to eight."""
    program = parse(text)
    return program, decode(program, chip_named(arch))


def decode(program: Program, chip: Chip) -> tuple[Decoded, ...]:
    """Raises UnsupportedInstruction that lists every line not understood, up to eight."""
    context = Context(chip, program.labels)
    decoded, problems = [], []
    for instruction in program.instructions:
        try:
            decoded.append(decode_instruction(instruction, context))
            _check_registers(instruction, program.directives)
        except UnsupportedInstruction as problem:
            problems.append(f"line {instruction.line}: {instruction.text}: {problem.reason}")
    if problems:
        more = len(problems) - _MOST_REPORTED
        rest = [f"and {more} more"] if more > 0 else []
        raise UnsupportedInstruction("\n".join([*problems[:_MOST_REPORTED], *rest]))
    return tuple(decoded)


def decode_instruction(instruction: Instruction, context: Context) -> Decoded:
    """Raises UnsupportedInstruction for a mnemonic, operand or modifier without a meaning here."""
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
    return frozenset(r for operand in named for r in operand.registers)


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
    limits = ((0, vectors), (AGPR, AGPR + max(accumulators, 0)), (SGPR, REGISTERS))
    for operand in instruction.operands:
        for first, limit in limits:
            last = operand.register + operand.count - 1
            bank_end = {0: AGPR, AGPR: SGPR, SGPR: REGISTERS}[first]
            if operand.is_register and first <= last < bank_end and last >= limit:
                raise UnsupportedInstruction(f"{operand.text} is beyond the registers allocated")
