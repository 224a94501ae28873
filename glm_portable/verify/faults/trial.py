"""Whether the suite notices a fault, and whether it stays silent where there is none."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from glm_portable.verify.faults.fault import Fault, Level
from glm_portable.verify.results import Check, Status

Checks = Callable[[Fault | None, int], Iterator[Check]]
"""A level's checks, from a seed: with a fault in the backend, or, with None, without."""


@dataclass(frozen=True)
class Trial:
    """One fault at one level. checks: that were run until one noticed it, or all.

    killed_by: the check that failed, and its first finding; both empty for a survivor.
    """

    fault: Fault
    level: Level
    checks: int
    killed_by: str = ""
    finding: str = ""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return bool(self.killed_by)

    @property
    def due(self) -> bool:
        """Whether the fault must be noticed at this level."""
        return self.level in self.fault.levels

    @property
    def missed(self) -> bool:
        return self.due and not self.killed


def trial(fault: Fault, level: Level, checks: Checks, seed: int = 0) -> Trial:
    """Put the fault in and run the checks until one fails.

    A backend that refuses some inputs with an error has been noticed by nobody: only findings
    count, and whatever a fault raises goes on to the caller.
    """
    began, count = time.perf_counter(), 0
    for check in checks(fault, seed):
        count += 1
        if check.status is Status.FAIL:
            seconds = time.perf_counter() - began
            killer = f"{check.subject}: {check.name}"
            return Trial(fault, level, count, killer, check.findings[0], seconds)
    return Trial(fault, level, count, seconds=time.perf_counter() - began)


def alarms(checks: Checks, seeds: Iterable[int]) -> Iterator[tuple[int, list[Check]]]:
    """(seed, the checks that failed) of honest runs, each with inputs that are its own."""
    for seed in seeds:
        yield seed, [check for check in checks(None, seed) if check.status is Status.FAIL]


@dataclass(frozen=True)
class Rate:
    """Kills among the faults that must be noticed at a level."""

    level: Level
    killed: int
    due: int

    @classmethod
    def of(cls, trials: Iterable[Trial], level: Level) -> "Rate":
        due = [t for t in trials if t.level == level and t.due]
        return cls(level, sum(t.killed for t in due), len(due))

    def __str__(self) -> str:
        share = f"{self.killed / self.due:.1%}" if self.due else "no faults"
        return f"{self.level}: {self.killed} of {self.due} killed, {share}"
