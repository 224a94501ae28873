"""Several reports side by side: one Markdown row for each level of each."""

from collections.abc import Iterable, Iterator

from glm_portable.verify.report.groups import ORDER, WORDS, grouped, ratio, verdict
from glm_portable.verify.report.text import figure, plain
from glm_portable.verify.results import Check, Report

MACHINE = ("backend", "simulated", "chip", "device", "model", "format")
"""Of `Report.about`, what tells the reports apart."""
HEADINGS = ("machine", "level", "verdict", *(WORDS[status] for status in reversed(ORDER)),
            "largest error / allowed", "where")  # fmt: skip


def table(reports: Iterable[Report]) -> str:
    """The rows, with a head."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(row for r in reports for row in _rows(r))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rows(report: Report) -> Iterator[list[str]]:
    machine = ", ".join(report.about[key] for key in MACHINE if key in report.about)
    for level in grouped(report.checks):
        part = Report(report.title, report.about, [c for c in report.checks if c.level == level])
        counts = [str(part.count(status) or "") for status in reversed(ORDER)]
        cells = [machine or report.title, level, verdict(part), *counts, *_worst(part.checks)]
        yield [plain(cell).replace("|", "\\|") for cell in cells]


def _worst(checks: Iterable[Check]) -> tuple[str, str]:
    measured = [(r, check) for check in checks if (r := ratio(check)) is not None]
    if not measured:
        return "", ""
    found, check = max(measured, key=lambda pair: pair[0])
    return figure(found), f"{check.subject}: {check.name}"
