"""Several reports side by side: one Markdown row for each level of each."""

from collections.abc import Iterable, Iterator

from glm_portable.verify.report.groups import ORDER, WORDS, grouped, ratio, verdict
from glm_portable.verify.report.text import figure, plain
from glm_portable.verify.results import Check, Report

HEADINGS = ("machine", "level", "verdict", *(WORDS[status] for status in reversed(ORDER)),
            "largest error / allowed", "where")  # fmt: skip


def table(reports: Iterable[Report]) -> str:
    """The rows, with a head."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(row for r in reports for row in _rows(r))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rows(report: Report) -> Iterator[list[str]]:
    machine = _machine(report) or report.title
    for level in grouped(report.checks):
        part = Report(report.title, report.about, [c for c in report.checks if c.level == level])
        counts = [str(part.count(status) or "") for status in reversed(ORDER)]
        cells = [machine, level, verdict(part), *counts, *_worst(part.checks)]
        yield [plain(cell).replace("|", "\\|") for cell in cells]


def _machine(report: Report) -> str:
    """Backend, chip and model: what tells the reports apart."""
    about = report.about
    backend, chip = about.get("backend", ""), about.get("simulated", "")
    if chip:
        chip = "" if chip in backend else f"simulated {chip}"
    else:
        chip = about.get("chip", "")
    model = (about.get(key, "") for key in ("model", "format"))
    return ", ".join(part for part in (backend, chip, *model) if part)


def _worst(checks: Iterable[Check]) -> tuple[str, str]:
    measured = [(r, check) for check in checks if (r := ratio(check)) is not None]
    if not measured:
        return "", ""
    found, check = max(measured, key=lambda pair: pair[0])
    return figure(found), f"{check.subject}: {check.name}"
