"""Vector ALU instructions: tables of operations bound to registers, EXEC, SDWA and DPP."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from glm_portable.virtual.cdna import floating, integer
from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.forms import Forms, forms_of
from glm_portable.virtual.cdna.lanes import Vector, to_mask
from glm_portable.virtual.cdna.operands import VCC, Operand
from glm_portable.virtual.cdna.operation import Operation
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.sources import source
from glm_portable.virtual.cdna.state import Wave

Write = Callable[[Wave, Vector, int], None]

_VCC = Operand("scalar", "vcc", VCC, 2)
_COMPARE: dict[str, Callable[[Vector, Vector], Vector]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "lg": lambda a, b: (a < b) | (a > b),
    "o": lambda a, b: (a == a) & (b == b),
    "u": lambda a, b: (a != a) | (b != b),
    "nlt": lambda a, b: ~(a < b),
    "nle": lambda a, b: ~(a <= b),
    "ngt": lambda a, b: ~(a > b),
    "nge": lambda a, b: ~(a >= b),
    "neq": np.not_equal,
    "nlg": lambda a, b: ~((a < b) | (a > b)),
}
_CMP = re.compile(r"v_cmp_(\w+)_([uif])(16|32|64)")
_COMPARE_LETTERS = {"u32": "u", "i32": "i", "f32": "f", "u64": "U", "i64": "I"}
_SELECT = Operation(lambda a, b, choose: np.where(choose, b, a), "bbm>u")


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    operation = _lookup(instruction.mnemonic)
    return None if operation is None else bind_operation(instruction, operation)


def _lookup(name: str) -> Operation | None:
    if name == "v_cndmask_b32":
        return _SELECT
    if match := _CMP.fullmatch(name):
        return _comparison(*match.groups())
    return integer.OPERATIONS.get(name) or floating.OPERATIONS.get(name)


def _comparison(name: str, kind: str, width: str) -> Operation | None:
    compare = _COMPARE.get(name)
    if compare is None:
        return None
    if width == "16" and kind == "u":
        low = np.uint32(0xFFFF)
        return Operation(lambda a, b: compare(a & low, b & low), "uu>M")
    if width == "16" and kind == "i":
        return Operation(lambda a, b: compare(a.astype(np.int16), b.astype(np.int16)), "uu>M")
    letter = _COMPARE_LETTERS.get(kind + width)
    return None if letter is None else Operation(compare, f"{letter}{letter}>M")


def bind_operation(instruction: Instruction, operation: Operation) -> Execute:
    """The instruction's operands are the signature's results, then its sources."""
    targets, sources = _split(instruction, operation)
    forms = forms_of(instruction)
    readers = [
        source(operand, letter, forms.source(i) if letter != "m" else None)
        for i, (operand, letter) in enumerate(zip(sources, operation.sources, strict=True))
    ]
    low = _undefined(operation, _low_words(sources), forms) if operation.upward else None
    writers = [
        _writer(operand, letter, forms, low)
        for operand, letter in zip(targets, operation.results, strict=True)
    ]
    undefined_lanes = _undefined(operation, sources, forms)
    function, single = operation.function, len(writers) == 1
    finish = forms.result(operation)
    if forms.clamp and operation.clamped is not None:
        function = operation.clamped

    def execute(wave: Wave) -> None:
        results = function(*[read(wave) for read in readers])
        undefined = undefined_lanes(wave)
        if single:
            writers[0](wave, finish(results), undefined)
        else:
            for write, result in zip(writers, results, strict=True):
                write(wave, result, undefined)

    return execute


def _split(
    instruction: Instruction, operation: Operation
) -> tuple[tuple[Operand, ...], tuple[Operand, ...]]:
    results = len(operation.results)
    targets, sources = instruction.operands[:results], instruction.operands[results:]
    if operation.reads_destination:
        sources = (*sources, targets[0])
    if instruction.mnemonic == "v_div_fmas_f32":
        sources = (*sources, _VCC)
    if len(sources) != len(operation.sources):
        raise UnsupportedInstruction(f"{len(instruction.operands)} operands are not its form")
    return targets, sources


def _low_words(sources: tuple[Operand, ...]) -> tuple[Operand, ...]:
    return tuple(replace(s, count=1) if s.kind == "vector" else s for s in sources)


def _writer(
    operand: Operand, letter: str, forms: Forms, undefined_low: Callable[[Wave], int] | None
) -> Write:
    """undefined_low: where a pair's low word is undefined, if that is not where the pair is."""
    register, count = operand.register, 2 if letter in "UIM" else 1
    kind = "scalar" if letter == "M" else "vector"
    if operand.kind != kind or operand.count != count:
        raise UnsupportedInstruction(f"destination {operand.text!r}")
    if letter == "M":

        def write_mask(wave: Wave, values: Vector, undefined: int) -> None:
            mask = to_mask(values) & wave.exec
            wave.write_scalars(register, 2, mask, undefined & wave.exec)

        return write_mask
    if letter in "UI":

        def write_pair(wave: Wave, values: Vector, undefined: int) -> None:
            words = values.view(np.uint64)
            low = undefined_low(wave) if undefined and undefined_low else undefined
            wave.write_vector(register, words.astype(np.uint32), low)
            high = (words >> np.uint64(32)).astype(np.uint32)
            wave.write_vector(register + 1, high, undefined)

        return write_pair

    def write(wave: Wave, values: Vector, undefined: int) -> None:
        merged, enable = forms.destination(wave, register, values.view(np.uint32))
        wave.write_vector(register, merged, undefined, enable)

    return write


def _undefined(
    operation: Operation, sources: tuple[Operand, ...], forms: Forms
) -> Callable[[Wave], int]:
    """The lanes whose result depends on an undefined register."""
    first, others = (
        tuple(r for s in some if s.kind == "vector" for r in s.registers)
        for some in (sources[:1], sources[1:])
    )
    pairs = list(zip(sources, operation.sources, strict=True))
    scalars = tuple(r for s, k in pairs if s.kind == "scalar" and k != "m" for r in s.registers)
    masks = [s.register for s, k in pairs if s.kind == "scalar" and k == "m"]
    if operation is _SELECT:
        return _undefined_selection(sources)

    def undefined(wave: Wave) -> int:
        lanes = wave.undefined_lanes(first)
        if lanes:
            lanes = forms.undefined(wave, lanes)
        lanes |= wave.undefined_lanes(others, scalars)
        for register in masks:
            lanes |= wave.undefined_bits(register, 2)
        return lanes

    return undefined


def _undefined_selection(sources: tuple[Operand, ...]) -> Callable[[Wave], int]:
    """v_cndmask_b32: only the chosen source counts, and the mask."""
    (first, second, mask) = sources
    choose = source(mask, "m")

    def one(wave: Wave, operand: Operand) -> int:
        registers = tuple(operand.registers)
        vectors, scalars = (registers, ()) if operand.kind == "vector" else ((), registers)
        return wave.undefined_lanes(vectors, scalars)

    def undefined(wave: Wave) -> int:
        unknown = wave.undefined_bits(mask.register, 2) if mask.is_register else 0
        a, b = one(wave, first), one(wave, second)
        if a or b:
            chosen = to_mask(choose(wave))
            unknown |= a & ~chosen | b & chosen
        return unknown

    return undefined
