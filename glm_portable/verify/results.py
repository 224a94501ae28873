"""What a verification found: checks, each with its verdict, and the report that holds them.

Everything that verifies yields `Check`s as it goes; how they are printed, written and plotted is
the business of `report`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNSUPPORTED = "unsupported"
    """The backend or server refuses this, by name."""
    SKIPPED = "skipped"
    """It could not be looked at here; the note says why, and where it can."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    level: "ops", "model", "endpoint", "faults". subject: what was judged: an op, a part of the
    model, a field of an answer. name: on which inputs. findings: what is wrong, one sentence each,
    with the values; a FAIL has at least one. measures: the numbers behind the verdict, under names
    that repeat from check to check ("error", "allowed", "slope", "kl_mean", "flips_unexplained").
    series: numbers along something ("kl" along the sequence), for plots. kernels: what was seen to
    run, and how often. note: what a reader should know, whatever the verdict.
    """

    level: str
    subject: str
    name: str
    status: Status
    findings: tuple[str, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kernels: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        assert (self.status is Status.FAIL) == bool(self.findings), (
            f"{self.status=} {self.findings=}"
        )


PASSED, FAILED, UNSUPPORTED, ENVIRONMENT = range(4)
"""Exit codes. 3: it could not be run, or nothing was there to look at."""
EXIT_CODES = {Status.FAIL: FAILED, Status.UNSUPPORTED: UNSUPPORTED, Status.PASS: PASSED}
"""Of the gravest status a report has."""


@dataclass(frozen=True)
class Report:
    """The checks of one run. about: what ran, in the order to be shown: backend, chip, versions."""

    title: str
    about: Mapping[str, str]
    checks: Sequence[Check]

    def count(self, status: Status) -> int:
        return sum(check.status is status for check in self.checks)

    @property
    def exit_code(self) -> int:
        """1 if anything fails; 2 if nothing does, but something is unsupported; 3 if nothing was
        looked at, which a green light must not stand for."""
        for status, code in EXIT_CODES.items():
            if self.count(status):
                return code
        return ENVIRONMENT
