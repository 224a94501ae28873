"""What the many checks of a report come to: groups of one subject, ratios, the verdict."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from glm_portable.verify.report.text import count, plain
from glm_portable.verify.results import Check, Report, Status

_NUMBER = re.compile(r"\blayer \d+")
ORDER = (Status.FAIL, Status.UNSUPPORTED, Status.SKIPPED, Status.PASS)
"""The worst first."""


def ratio(check: Check) -> float | None:
    """error / allowed, if the check has both; infinite for an error that is no number."""
    error, allowed = check.measures.get("error"), check.measures.get("allowed")
    if error is None or allowed is None:
        return None
    if error == 0:
        return 0.0
    return error / allowed if math.isfinite(error) and allowed > 0 else math.inf


@dataclass(frozen=True)
class Group:
    """Checks of one level and subject; the layers of a model are one subject."""

    level: str
    checks: tuple[Check, ...]

    @property
    def label(self) -> str:
        first, last = (plain(check.subject) for check in (self.checks[0], self.checks[-1]))
        return first if first == last else f"{first} to {last.removeprefix('layer ')}"

    def count(self, status: Status) -> int:
        return sum(check.status is status for check in self.checks)

    @property
    def status(self) -> Status:
        """The worst of its checks'."""
        return next(status for status in ORDER if self.count(status))

    @cached_property
    def worst(self) -> Check | None:
        """The check nearest to its limit, or furthest beyond it."""
        measured = [check for check in self.checks if ratio(check) is not None]
        return max(measured, key=lambda check: ratio(check) or 0.0, default=None)

    @property
    def kernels(self) -> Counter[str]:
        return kernels(self.checks)


def grouped(checks: Iterable[Check]) -> dict[str, list[Group]]:
    """The groups of each level, levels and groups in the order of their first check."""
    found: dict[str, dict[str, list[Check]]] = {}
    for check in checks:
        subjects = found.setdefault(check.level, {})
        subjects.setdefault(_NUMBER.sub("layer", check.subject), []).append(check)
    return {
        level: [Group(level, tuple(members)) for members in subjects.values()]
        for level, subjects in found.items()
    }


def kernels(checks: Iterable[Check]) -> Counter[str]:
    """Launches of each kernel over all checks, the most first."""
    seen: Counter[str] = Counter()
    for check in checks:
        seen.update({plain(name): launches for name, launches in check.kernels.items()})
    return Counter(dict(seen.most_common()))


def verdict(report: Report) -> str:
    """FAIL, UNSUPPORTED or PASS; NOTHING CHECKED where every check was skipped, or none made."""
    for status in (Status.FAIL, Status.UNSUPPORTED, Status.PASS):
        if report.count(status):
            return status.upper()
    return "NOTHING CHECKED"


WORDS = {
    Status.FAIL: "failed",
    Status.UNSUPPORTED: "unsupported",
    Status.SKIPPED: "skipped",
    Status.PASS: "passed",
}


def totals(report: Report) -> str:
    """148 checks: 2 failed, 1 skipped, 145 passed."""
    parts = [f"{n:,} {WORDS[status]}" for status in ORDER if (n := report.count(status))]
    checks = count(len(report.checks), "check")
    return f"{checks}: {', '.join(parts)}" if parts else checks


def suite(report: Report) -> str:
    """What the report says its suite is; else a hash of which checks were made, in any order."""
    if "suite" in report.about:
        return report.about["suite"]
    names = sorted("\0".join((c.level, c.subject, c.name)) for c in report.checks)
    return hashlib.sha256("\n".join(names).encode("utf-8", "replace")).hexdigest()[:12]
