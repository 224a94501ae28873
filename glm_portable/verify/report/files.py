"""Writing a report to files."""

import os
from pathlib import Path

from glm_portable.verify.report import badges, page, stored
from glm_portable.verify.report import junit as xml
from glm_portable.verify.results import Report


def write(
    report: Report,
    *,
    json: Path | None = None,
    junit: Path | None = None,
    html: Path | None = None,
    badge: Path | None = None,
) -> None:
    """Write the forms that were asked for; badge: .svg is a picture, any other name Markdown.

    Raises OSError where a file cannot be written.
    """
    if json is not None:
        _put(json, stored.dumps(report))
    if junit is not None:
        _put(junit, xml.dumps(report))
    if html is not None:
        _put(html, page.render(report))
    if badge is not None:
        picture = badge.suffix.lower() == ".svg"
        _put(badge, badges.svg(report) if picture else f"{badges.badge(report)}\n")


def _put(path: Path, text: str) -> None:
    """All or nothing: whoever reads meanwhile sees the old file or the new one."""
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
