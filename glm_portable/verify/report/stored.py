"""A report as JSON: for machines, for `verify report`, and to keep.

    {"schema": "glm-portable/verify-report", "version": 1, "title": ..., "about": {...},
     "summary": {"verdict", "exit_code", "suite", "pass", "fail", "unsupported", "skipped"},
     "checks": [{"level", "subject", "name", "status", "findings", "measures", "series",
                 "kernels", "note", "seconds"}, ...]}

JSON has no word for NaN and infinity: they are the strings "nan", "inf" and "-inf". A reader
ignores keys that it does not know; the version rises when what a key means changes.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm_portable.errors import UsageError
from glm_portable.verify.report.groups import suite, verdict
from glm_portable.verify.results import Check, Report, Status

SCHEMA, VERSION = "glm-portable/verify-report", 1


def dumps(report: Report) -> str:
    """The report as strict JSON."""
    counts = {status.value: report.count(status) for status in Status}
    summary = {
        "verdict": verdict(report),
        "exit_code": report.exit_code,
        "suite": suite(report),
        **counts,
    }
    stored = {
        "schema": SCHEMA,
        "version": VERSION,
        "title": report.title,
        "about": dict(report.about),
        "summary": summary,
        "checks": [_check(check) for check in report.checks],
    }
    return json.dumps(stored, indent=1, allow_nan=False) + "\n"


def read(path: Path) -> Report:
    """What `dumps` wrote. Raises UsageError for any other file, OSError for none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}.") from None
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        raise UsageError(f"{path} is no report of `verify`; write one with --json.")
    if stored.get("version") != VERSION:
        raise UsageError(
            f"{path} has version {stored.get('version')!r} of the format, and version {VERSION} is "
            "known here; use the glm-portable that wrote it, or a newer one."
        )
    try:
        checks = [_read_check(check) for check in stored["checks"]]
        about = {str(key): str(value) for key, value in stored["about"].items()}
        return Report(str(stored["title"]), about, checks)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UsageError(
            f"{path} is damaged ({type(error).__name__}: {error}); make the report again."
        ) from None


def _check(check: Check) -> dict[str, Any]:
    return {
        "level": check.level,
        "subject": check.subject,
        "name": check.name,
        "status": check.status.value,
        "findings": list(check.findings),
        "measures": {name: _number(value) for name, value in check.measures.items()},
        "series": {name: [_number(v) for v in values] for name, values in check.series.items()},
        "kernels": dict(check.kernels),
        "note": check.note,
        "seconds": _number(check.seconds),
    }


def _read_check(stored: Mapping[str, Any]) -> Check:
    return Check(
        level=str(stored["level"]),
        subject=str(stored["subject"]),
        name=str(stored["name"]),
        status=Status(stored["status"]),
        findings=tuple(str(finding) for finding in stored["findings"]),
        measures={str(name): _read(value) for name, value in stored["measures"].items()},
        series={str(n): tuple(_read(v) for v in vs) for n, vs in stored["series"].items()},
        kernels={str(name): int(launches) for name, launches in stored["kernels"].items()},
        note=str(stored["note"]),
        seconds=_read(stored["seconds"]),
    )


def _number(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _read(stored: object) -> float:
    if isinstance(stored, str) and stored not in ("nan", "inf", "-inf"):
        raise ValueError(f"{stored!r} is no number")
    if isinstance(stored, (str, int, float)):
        return float(stored)
    raise TypeError(f"{stored!r} is no number")
