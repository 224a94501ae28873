"""What a kernel is expected to compile into, and the sentences about what it did not."""

from collections.abc import Set
from dataclasses import dataclass

from glm_portable.virtual.codegen.metrics import Metrics


@dataclass(frozen=True)
class Expectation:
    """Ceilings and floors for one kernel in one configuration on one chip.

    Zero spills and shared memory within the chip's limit are expected of every kernel.

    dialects: the types its matrix instructions multiply, and no others; empty for a kernel that
        multiplies no matrices. A kernel meant for FP8 that multiplies f16 was silently upcast.
    valu_per_matrix: the most VALU instructions for each matrix instruction in the hot loop.
    waves: the fewest waves of a SIMD. workgroups: the fewest workgroups of a compute unit.
    dword_loads: the most 4-byte loads in the hot loop (scales and page numbers, not A or B); None
        for any number.
    narrowest: bytes for each lane that a load in the hot loop has at least.
    """

    dialects: Set[str] = frozenset()
    valu_per_matrix: float | None = None
    waves: int = 1
    workgroups: int = 1
    dword_loads: int | None = 0
    narrowest: int = 4


def gate(metrics: Metrics, expectation: Expectation) -> list[str]:
    """What is wrong with a compiled kernel, one sentence a finding; empty if it passes."""
    who = f"{metrics.kernel} on {metrics.chip.name}"
    findings = [
        *_resources(metrics, expectation),
        *_matrix(metrics, expectation),
        *_loads(metrics, expectation),
    ]
    return [f"{who} {finding}." for finding in findings]


def _resources(metrics: Metrics, expected: Expectation) -> list[str]:
    found, chip = [], metrics.chip
    unit = "vector registers" if chip.is_amd else "bytes"
    if metrics.spills:
        found.append(f"spills {metrics.spills} {unit}: use a smaller tile or more warps")
    if metrics.scalar_spills:
        found.append(f"spills {metrics.scalar_spills} scalar registers into vector registers")
    if metrics.shared > chip.shared_limit:
        found.append(
            f"needs {metrics.shared:,} bytes of shared memory, and the chip has "
            f"{chip.shared_limit:,}: it would not start"
        )
    elif metrics.workgroups < expected.workgroups:
        found.append(
            f"lets a compute unit hold {metrics.workgroups} workgroups, fewer than the "
            f"{expected.workgroups} expected ({metrics.shared:,} bytes of shared memory each)"
        )
    if metrics.waves < expected.waves:
        found.append(
            f"lets a SIMD hold {metrics.waves} waves, fewer than the {expected.waves} expected "
            f"({metrics.registers} registers each)"
        )
    return found


def _matrix(metrics: Metrics, expected: Expectation) -> list[str]:
    found = []
    if missing := sorted(expected.dialects - metrics.dialects):
        found.append(f"has no matrix instruction for {' or '.join(missing)}")
    if surplus := sorted(metrics.dialects - expected.dialects):
        wanted = " and ".join(sorted(expected.dialects)) or "no matrices"
        found.append(
            f"multiplies {' and '.join(surplus)} ({', '.join(sorted(metrics.matrix))}) where "
            f"{wanted} was meant: a silent conversion"
        )
    ceiling, actual = expected.valu_per_matrix, metrics.loop.valu_per_matrix
    if ceiling is not None and actual > ceiling:
        found.append(
            f"issues {actual:.2f} VALU instructions for each matrix instruction in its hot loop, "
            f"more than {ceiling:g}"
        )
    return found


def _loads(metrics: Metrics, expected: Expectation) -> list[str]:
    found, loads = [], metrics.loop.loads
    for width in sorted(w for w in loads if w < expected.narrowest):
        found.append(
            f"loads {width} byte{'s' * (width > 1)} at a time in its hot loop ({loads[width]} "
            "times): an argument is not known to be divisible by 16, or a layout is wrong"
        )
    if expected.dword_loads is not None and loads.get(4, 0) > expected.dword_loads:
        found.append(
            f"has {loads[4]} loads of 4 bytes in its hot loop, more than {expected.dword_loads}: "
            "an operand is loaded in pieces"
        )
    return found
