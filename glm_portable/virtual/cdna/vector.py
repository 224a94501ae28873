"""Vector ALU instructions: tables of operations bound to registers, EXEC, SDWA and DPP."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from glm_portable.virtual.cdna import floating, half, integer
from glm_portable.virtual.cdna.compare import comparison
from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.forms import Forms, forms_of
from glm_portable.virtual.cdna.lanes import Vector, Words, to_mask
from glm_portable.virtual.cdna.operands import VCC, Operand
from glm_portable.virtual.cdna.operation import Operation
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.sources import Transform, source
from glm_portable.virtual.cdna.state import Wave

Write = Callable[[Wave, Vector, int], None]
Place = Callable[[Vector, Words], Words]

_LOW = np.uint32(0xFFFF)
_VCC = Operand("scalar", "vcc", VCC, 2)
_SELECT = Operation(lambda a, b, choose: np.where(choose, b, a), "bbm>u")


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    operation = _lookup(instruction.mnemonic)
    return None if operation is None else bind_operation(instruction, operation)


def _lookup(name: str) -> Operation | None:
    if name == "v_cndmask_b32":
        return _SELECT
    tables = (integer.OPERATIONS, floating.OPERATIONS, half.OPERATIONS)
    return next((table[name] for table in tables if name in table), None) or comparison(name)


def bind_operation(instruction: Instruction, operation: Operation) -> Execute:
    """The instruction's operands are the signature's results, then its sources."""
    targets, sources = _split(instruction, operation)
    forms = forms_of(instruction)
    halves, high_result = _halves(instruction, operation)
    readers = [
        source(operand, letter, _transform(forms, i, operand, letter), halves[i])
        for i, (operand, letter) in enumerate(zip(sources, operation.sources, strict=True))
    ]
    low = _undefined(operation, _low_words(sources), forms) if operation.upward else None
    writers = [
        _writer(operand, letter, forms, low, _placed(operation, letter, high_result))
        for operand, letter in zip(targets, operation.results, strict=True)
    ]
    undefined_lanes = _undefined(operation, sources, forms)
    function, single = operation.function, len(writers) == 1
    finish = forms.result(operation)
    if forms.clamp and operation.clamped is not None:
        function = operation.clamped
    saturated = operation.saturated or function

    def execute(wave: Wave) -> None:
        compute = saturated if wave.fp16_overflow else function
        results = compute(*[read(wave) for read in readers])
        undefined = undefined_lanes(wave)
        if single:
            writers[0](wave, finish(results), undefined)
        else:
            for write, result in zip(writers, results, strict=True):
                write(wave, result, undefined)

    return execute


def _transform(forms: Forms, index: int, operand: Operand, letter: str) -> Transform | None:
    return None if letter == "m" else forms.source(index, operand.extend)


def _halves(instruction: Instruction, operation: Operation) -> tuple[list[int], int]:
    """op_sel: the half of each source, and of the destination, of a 16-bit operation."""
    count = len(operation.sources)
    if not operation.halves:
        return [0] * count, 0
    *sources, result = instruction.modifiers.bits("op_sel", count + 1, 0)
    return sources, result


def _placed(operation: Operation, letter: str, high: int) -> Place:
    """How a result becomes the words to write, of the destination's words before."""
    if letter not in "wh":
        if high:
            raise UnsupportedInstruction("op_sel of a 32-bit destination")
        return lambda values, old: values.view(np.uint32)
    if high and not operation.keeps_upper:
        raise UnsupportedInstruction("op_sel of a destination that is extended by zeros")
    if not operation.keeps_upper:
        return lambda values, old: _sixteen(values)
    if high:
        return lambda values, old: old & _LOW | _sixteen(values) << np.uint32(16)
    return lambda values, old: old & ~_LOW | _sixteen(values)


def _sixteen(values: Vector) -> Words:
    bits = values.view(np.uint16) if values.dtype == np.float16 else values
    return bits.astype(np.uint32) & _LOW


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
    operand: Operand,
    letter: str,
    forms: Forms,
    undefined_low: Callable[[Wave], int] | None,
    place: Place,
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
        words = place(values, wave.vectors[register])
        merged, enable = forms.destination(wave, register, words)
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
        return _undefined_selection(sources, forms)

    def undefined(wave: Wave) -> int:
        lanes = wave.undefined_lanes(first)
        if lanes:
            lanes = forms.undefined(wave, lanes)
        lanes |= wave.undefined_lanes(others, scalars)
        for register in masks:
            lanes |= wave.undefined_bits(register, 2)
        return lanes

    return undefined


def _undefined_selection(sources: tuple[Operand, ...], forms: Forms) -> Callable[[Wave], int]:
    """v_cndmask_b32: only the chosen source counts, and the mask."""
    (first, second, mask) = sources
    choose = source(mask, "m")

    def one(wave: Wave, operand: Operand) -> int:
        registers = tuple(operand.registers)
        vectors, scalars = (registers, ()) if operand.kind == "vector" else ((), registers)
        return wave.undefined_lanes(vectors, scalars)

    def undefined(wave: Wave) -> int:
        unknown = wave.undefined_bits(mask.register, 2) if mask.is_register else 0
        a, b = forms.undefined(wave, one(wave, first)), one(wave, second)
        if a or b:
            chosen = to_mask(choose(wave))
            unknown |= a & ~chosen | b & chosen
        return unknown

    return undefined
