"""A report as one HTML page that needs nothing else: no request, no build step, no JavaScript.

Whatever comes from a report is escaped by the template. Should something slip through, the page's
content security policy lets no script run but the one of its hash, and nothing load.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from glm_portable.verify.report import plots
from glm_portable.verify.report.groups import ORDER, kernels, suite, totals, verdict
from glm_portable.verify.report.meaning import why
from glm_portable.verify.report.plots import Bar
from glm_portable.verify.report.text import figure, plain
from glm_portable.verify.results import Check, Report, Status

ASSETS = Path(__file__).parent / "assets"
SIGNS = {
    Status.PASS: "\u2713",
    Status.FAIL: "\u2717",
    Status.UNSUPPORTED: "\u2013",
    Status.SKIPPED: "\u25cb",
}
IN_BAR = ("error", "allowed")


@dataclass(frozen=True)
class Row:
    """One check in the table."""

    key: int
    check: Check
    why: list[str]
    bar: Bar | None

    @property
    def measures(self) -> dict[str, float]:
        """Those that the bar does not show."""
        shown = IN_BAR if self.bar else ()
        return {name: v for name, v in self.check.measures.items() if name not in shown}


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "short": plots.short}
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        style=Markup(_asset("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **_content(report),
    )


def _content(report: Report) -> Mapping[str, Any]:
    scale = plots.bar_scale(report.checks)
    rows = [Row(i, c, why(c), plots.bar(c, scale)) for i, c in enumerate(report.checks)]
    return {
        "report": report,
        "verdict": verdict(report),
        "totals": totals(report),
        "suite": suite(report),
        "seconds": sum(check.seconds for check in report.checks),
        "rows": rows,
        "failures": [row for row in rows if row.check.status is Status.FAIL],
        "statuses": [status for status in ORDER if report.count(status)],
        "signs": SIGNS,
        "scale": scale,
        "errors": plots.errors(report.checks),
        "curves": plots.curves(report.checks),
        "routers": plots.routers(report.checks),
        "kernels": [(k, n, _users(report, k)) for k, n in kernels(report.checks).items()],
    }


def _users(report: Report, kernel: str) -> str:
    """In which subjects a kernel was seen."""
    subjects = [
        f"{check.level} {check.subject}"
        for check in report.checks
        if any(plain(name) == kernel for name in check.kernels)
    ]
    names = list(dict.fromkeys(subjects))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _printable(value: object) -> object:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
