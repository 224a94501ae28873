"""Damaged copies of a program, and whether the simulator notices.

A mutant lacks one instruction, or one of its instructions reads another register.
"""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from glm_portable.virtual.cdna.chips import chip_named
from glm_portable.virtual.cdna.decode import decode_instruction, decode_text
from glm_portable.virtual.cdna.decoded import Context, Decoded
from glm_portable.virtual.cdna.faults import Fault
from glm_portable.virtual.cdna.launcher import execute
from glm_portable.virtual.cdna.machine import Code, Statistics
from glm_portable.virtual.cdna.operands import SGPR
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.state import Wave
from glm_portable.virtual.cdna.subjects import Subject

Kind = Literal["barrier", "wait", "mfma", "lds", "mask", "register"]
KINDS: tuple[Kind, ...] = ("barrier", "wait", "mfma", "lds", "mask", "register")
SURVIVED, WRONG, NEVER, IDLE = "survived", "wrong result", "never executed", "without effect"

_TOLERANCE = 0.01  # of a result's RMS; about what the project's own tests let pass


@dataclass(frozen=True)
class Mutant:
    """index: the instruction that is replaced by `decoded`. text: what was done, and where."""

    kind: Kind
    index: int
    text: str
    decoded: Decoded


@dataclass(frozen=True)
class Verdict:
    """outcome: SURVIVED, WRONG, NEVER, IDLE, or the name of the fault."""

    mutant: Mutant
    outcome: str

    @property
    def counts(self) -> bool:
        """Whether the mutant could be noticed: its instruction has something to do."""
        return self.outcome not in (NEVER, IDLE)

    @property
    def killed(self) -> bool:
        return self.counts and self.outcome != SURVIVED


class Trial:
    """A program whose mutants are judged against its own results.

    Without effect are a wait if nothing it waits for was ever under way, a barrier in a workgroup
    of one wave, and an MFMA or mask that never changed a bit of its destination (a product of
    zeros, a mask that lets all pass): without it the program is the same.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        compiled = subject.compiled
        self._program, self._code = decode_text(compiled.text, compiled.arch)
        self._busy: set[int] = set()
        watched = tuple(self._watched(i, d) for i, d in enumerate(self._code))
        self._expected, statistics = self._run(watched, 0, 100_000_000)
        self._counts, self._limit = statistics.counts, 4 * statistics.total + 1000
        self.total = statistics.total

    def mutants(self, kind: Kind, most: int, seed: int) -> list[Mutant]:
        """All of a kind, or `most` of them chosen by the seed, those executed first."""
        chance = random.Random(seed)
        found = list(self._mutants(kind, chance))
        executed = [m for m in found if self._counts[m.index]]
        never = [m for m in found if not self._counts[m.index]]
        if len(executed) > most:
            executed = chance.sample(executed, most)
        return sorted(executed, key=lambda m: m.index) + never

    def judge(self, mutant: Mutant, seeds: Sequence[int]) -> Verdict:
        if not self._counts[mutant.index]:
            return Verdict(mutant, NEVER)
        if mutant.kind in ("wait", "barrier", "mfma", "mask") and mutant.index not in self._busy:
            return Verdict(mutant, IDLE)
        code = (*self._code[: mutant.index], mutant.decoded, *self._code[mutant.index + 1 :])
        for seed in seeds:
            try:
                results, _ = self._run(code, seed, self._limit)
            except Fault as fault:
                return Verdict(mutant, type(fault).__name__)
            pairs = zip(results, self._expected, strict=True)
            if not all(_alike(a, b) for a, b in pairs):
                return Verdict(mutant, WRONG)
        return Verdict(mutant, SURVIVED)

    def _run(self, code: Code, seed: int, limit: int) -> tuple[list[Tensor], Statistics]:
        compiled = self.subject.fresh()
        statistics = execute(
            compiled, self.subject.grid, code=code, seed=seed, max_instructions=limit
        )
        return [a for a in compiled.arguments if isinstance(a, Tensor)], statistics

    def _watched(self, index: int, decoded: Decoded) -> Decoded:
        """Note where an instruction that may be taken out has something to do."""
        instruction = self._program.instructions[index]
        if decoded.kind == "wait":
            state: Callable[[Wave], object] = _under_way
        elif decoded.kind == "mfma" or _is("mask", instruction, decoded):
            registers = tuple(instruction.operands[0].registers)
            state = functools.partial(_contents, registers)
        else:
            if decoded.kind == "barrier" and self.subject.compiled.waves > 1:
                self._busy.add(index)
            return decoded

        def execute(wave: Wave) -> None:
            before = state(wave)
            decoded.execute(wave)
            if state(wave) != before:
                self._busy.add(index)

        return replace(decoded, execute=execute)

    def _mutants(self, kind: Kind, chance: random.Random) -> Iterator[Mutant]:
        for index, instruction in enumerate(self._program.instructions):
            decoded = self._code[index]
            where = f"line {instruction.line}: {instruction.text}"
            if kind == "register":
                if changed := self._other_register(instruction, decoded, chance):
                    yield Mutant(kind, index, f"{where} -> {changed[0]}", changed[1])
            elif _is(kind, instruction, decoded):
                nothing = Decoded(lambda wave: None, decoded.kind, frozenset())
                yield Mutant(kind, index, where, nothing)

    def _other_register(
        self, instruction: Instruction, decoded: Decoded, chance: random.Random
    ) -> tuple[str, Decoded] | None:
        """One vector source replaced by the register after it."""
        if decoded.kind not in ("valu", "mfma", "lds", "memory"):
            return None
        places = [
            i
            for i, operand in enumerate(instruction.operands)
            if i > 0 and operand.kind == "vector" and operand.register % 256 < 254
        ]
        if not places:
            return None
        place = chance.choice(places)
        operands = list(instruction.operands)
        old = operands[place]
        operands[place] = replace(old, register=old.register + 1)
        changed = replace(instruction, operands=tuple(operands))
        compiled = self.subject.compiled
        context = Context(chip_named(compiled.arch), self._program.labels)
        text = f"the register after {old.text} as operand {place}"
        return text, decode_instruction(changed, context)


def _under_way(wave: Wave) -> object:
    return len(wave.vector_queue) + len(wave.lgkm_queue)


def _contents(registers: tuple[int, ...], wave: Wave) -> object:
    """Values and what is undefined of them, and EXEC."""
    values = [wave.vectors[r].tobytes() if r < SGPR else wave.scalars[r - SGPR] for r in registers]
    return wave.exec, values, [wave.undefined[r] for r in registers]


def _is(kind: Kind, instruction: Instruction, decoded: Decoded) -> bool:
    name = instruction.mnemonic
    to_lds = "_lds_" in name or "lds" in instruction.modifiers.values
    return {
        "barrier": decoded.kind == "barrier",
        "wait": decoded.kind == "wait",
        "mfma": decoded.kind == "mfma",
        "lds": decoded.kind == "lds" or (decoded.kind == "memory" and to_lds),
        "mask": name in ("v_cndmask_b32", "s_and_saveexec_b64"),
        "register": False,
    }[kind]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Integers equal; of other numbers none off by more than a hundredth of their RMS."""
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    x, y = a.double(), b.double()
    finite = y.isfinite()
    if not torch.equal(finite, x.isfinite()):
        return False
    rms = y[finite].square().mean().sqrt() if finite.any() else torch.zeros(())
    return bool(((x - y)[finite].abs() <= _TOLERANCE * rms).all())
