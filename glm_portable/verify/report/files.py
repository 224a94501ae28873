"""Writing a report to files."""

import os
from pathlib import Path

from glm_portable.verify.report import stored
from glm_portable.verify.results import Report


def write(report: Report, *, json: Path | None = None) -> None:
    """Write the forms that were asked for. Raises OSError where that is not possible."""
    if json is not None:
        put(json, stored.dumps(report))


def put(path: Path, text: str) -> None:
    """Write all or nothing: whoever reads meanwhile sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
