"""Workgroups: waves set up as the command processor does it, interleaved at random by a seed."""

from dataclasses import dataclass, field

import numpy as np

from glm_portable.virtual.cdna.chips import Chip
from glm_portable.virtual.cdna.decoded import Decoded
from glm_portable.virtual.cdna.faults import Fault, Hang, MissingWait, Site, UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import LANE, LANES
from glm_portable.virtual.cdna.lds import LocalMemory
from glm_portable.virtual.cdna.memory import GlobalMemory
from glm_portable.virtual.cdna.operands import SGPR
from glm_portable.virtual.cdna.parser import Program
from glm_portable.virtual.cdna.state import Wave, Workgroup

Grid = tuple[int, int, int]
Code = tuple[Decoded, ...]
_LONGEST_TURN = 40
_USER_SGPRS = (
    ("private_segment_buffer", 4),
    ("dispatch_ptr", 2),
    ("queue_ptr", 2),
    ("kernarg_segment_ptr", 2),
)
"""Scalar registers set at launch, in this order, each if its .amdhsa_user_sgpr_ directive is 1."""


@dataclass
class Statistics:
    """instructions: executed, by kind (valu, salu, mfma, memory, lds, control, wait, barrier).
    counts: how often each instruction of the program was executed."""

    workgroups: int = 0
    waves: int = 0
    instructions: dict[str, int] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list, repr=False)

    @property
    def total(self) -> int:
        return sum(self.instructions.values())


@dataclass(frozen=True)
class Job:
    """One launch of a program. code: an entry for each instruction of it. kernarg: address of the
    kernel's arguments. limit: instructions of all waves of a workgroup together, after which it is
    taken to hang."""

    program: Program
    code: Code
    chip: Chip
    grid: Grid
    waves: int
    kernarg: int
    lds_bytes: int
    seed: int
    limit: int


def run(job: Job, memory: GlobalMemory) -> Statistics:
    """Execute all workgroups, one after the other in the order of the grid.

    Raises Fault, its site filled in.
    """
    program, code = job.program, job.code
    _refuse_scratch(program)
    random = np.random.default_rng(job.seed)
    counts = [0] * len(code)
    statistics = Statistics(counts=counts)
    with np.errstate(all="ignore"):
        for z, y, x in np.ndindex(*job.grid[::-1]):
            group = Workgroup((x, y, z), memory, LocalMemory(job.lds_bytes))
            waves = [_wave(job, program, group, i) for i in range(job.waves)]
            _Scheduler(program, code, waves, group, counts).run(random, job.limit)
            statistics.workgroups += 1
            statistics.waves += job.waves
    for decoded, count in zip(code, counts, strict=True):
        known = statistics.instructions
        known[decoded.kind] = known.get(decoded.kind, 0) + count
    return statistics


def _refuse_scratch(program: Program) -> None:
    if size := program.directives.get("private_segment_fixed_size"):
        raise UnsupportedInstruction(
            f"scratch memory ({size} bytes a lane, registers spilled or indexed) is not implemented"
        )


def _wave(job: Job, program: Program, group: Workgroup, index: int) -> Wave:
    """Initial registers: AMDGPU code object v5 ABI (LLVM's AMDGPUUsage, Initial Kernel Execution
    State): user SGPRs, then workgroup ids; work-item ids packed in v0. Arguments are not
    preloaded: the entry's compatibility code loads them itself."""
    wave = Wave(index, group, job.chip)
    directives, register = program.directives, SGPR
    for name, count in _USER_SGPRS:
        if directives.get(f"user_sgpr_{name}"):
            if name == "kernarg_segment_ptr":
                wave.write_scalars(register, 2, job.kernarg)
            register += count
    register = SGPR + directives.get("user_sgpr_count", 2)
    for axis, value in zip("xyz", group.index, strict=True):
        if directives.get(f"system_sgpr_workgroup_id_{axis}"):
            wave.write_scalars(register, 1, value)
            register += 1
    wave.write_vector(0, (LANE + LANES * index).astype(np.uint32))
    return wave


class _Scheduler:
    """Runs the waves of one workgroup in random turns between barriers."""

    def __init__(
        self,
        program: Program,
        code: Code,
        waves: list[Wave],
        group: Workgroup,
        counts: list[int],
    ) -> None:
        self._program, self._code, self._counts = program, code, counts
        self._waves, self._group = waves, group

    def run(self, random: np.random.Generator, limit: int) -> None:
        executed = 0
        while running := [wave for wave in self._waves if wave.status == "running"]:
            wave = running[int(random.integers(len(running)))]
            executed += self._turn(wave, int(random.integers(1, _LONGEST_TURN)))
            if executed > limit:
                fault = Hang(f"still running after {limit} instructions")
                fault.site = self._site(wave, wave.pc)
                raise fault
            if all(wave.status != "running" for wave in self._waves):
                self._release()

    def _release(self) -> None:
        """All waves that have not ended are at a barrier: let them pass."""
        self._group.epoch += 1
        for wave in self._waves:
            if wave.status == "barrier":
                wave.status = "running"

    def _turn(self, wave: Wave, instructions: int) -> int:
        """Up to `instructions` of one wave; returns how many."""
        code, counts, under_way = self._code, self._counts, wave.under_way
        try:
            for done in range(1, instructions + 1):
                at = wave.pc
                wave.pc = at + 1
                counts[at] += 1
                decoded = code[at]
                if under_way and not under_way.keys().isdisjoint(decoded.touches):
                    self._missing_wait(wave, decoded)
                decoded.execute(wave)
                if wave.status != "running":
                    return done
        except Fault as fault:
            if fault.site is None:
                fault.site = self._site(wave, at if fault.index is None else fault.index)
            raise
        return instructions

    def _missing_wait(self, wave: Wave, decoded: Decoded) -> None:
        register = next(r for r in wave.under_way if r in decoded.touches)
        load = self._program.instructions[wave.under_way[register].instruction]
        raise MissingWait(f"its result of {load.text!r} (line {load.line}) may not have arrived")

    def _site(self, wave: Wave, at: int) -> Site:
        instruction = self._program.instructions[at]
        return Site(instruction.text, instruction.line, self._group.index, wave.index)
