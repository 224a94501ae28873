"""The verdict in one line for a README, and as a picture beside it.

    **glm-portable verify: PASS**, 148 checks: 148 passed; backend: rocm; chip: ...; suite: 3f9a...

GitHub shows no pictures from data URIs, so the picture is a file to be kept in the repository.
"""

import re
from xml.sax.saxutils import escape, quoteattr

from glm_portable.verify.report.groups import suite, totals, verdict
from glm_portable.verify.report.text import plain
from glm_portable.verify.results import Report

LEFT_OUT = {"python", "platform", "revision", "threads"}
"""What `about` says beyond backend, chip, driver, versions and date."""
COLOURS = {"PASS": "#18733f", "FAIL": "#b3261e"}
PER_LETTER = 6.6
"""Width of a letter at 11 pixels; `textLength` makes the browser keep to it."""


def badge(report: Report) -> str:
    """One line of Markdown."""
    about = {k: v for k, v in report.about.items() if k.lower() not in LEFT_OUT}
    about.setdefault("suite", suite(report))
    facts = [f"{_markdown(name)}: {_markdown(value)}" for name, value in about.items()]
    line = f"**glm-portable verify: {verdict(report)}**, {totals(report)}; {'; '.join(facts)}"
    return " ".join(line.split())


def svg(report: Report) -> str:
    """A picture in the manner of shields.io: verdict, backend and chip."""
    left = "glm-portable verify"
    ran = [report.about[key] for key in ("backend", "chip") if key in report.about]
    right = plain(" on ".join([verdict(report), ", ".join(ran)] if ran else [verdict(report)]))
    a, b = (round(PER_LETTER * len(text)) + 14 for text in (left, right))
    colour = COLOURS.get(verdict(report), "#7a5c00")
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" \
aria-label={quoteattr(f"{left}: {right}")}>
<title>{escape(badge(report))}</title>
<rect width="{a + b}" height="20" rx="3" fill="{colour}"/>
<path d="M3 0 H{a} V20 H3 A3 3 0 0 1 0 17 V3 A3 3 0 0 1 3 0" fill="#444"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="7" y="14" textLength="{a - 14}">{left}</text>
<text x="{a + 7}" y="14" textLength="{b - 14}">{escape(right)}</text>
</g>
</svg>
"""


def _markdown(text: str) -> str:
    """The text without a meaning in Markdown or HTML, on one line."""
    return re.sub(r"([\\`*_\[\]<>|&~!#$])", r"\\\1", " ".join(plain(text).split()))
