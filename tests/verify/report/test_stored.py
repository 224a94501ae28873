"""A report survives its JSON, and a damaged or foreign file is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from glm_portable.errors import UsageError
from glm_portable.verify.report import read, write
from tests.verify.report.samples import clean, mixed


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(clean(), json=tmp_path / "r.json")
    assert read(tmp_path / "r.json") == clean()
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_nan_infinity_and_hostile_text_survive_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write(mixed(), json=path)

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    again, before = read(path), mixed()
    assert repr(again.checks) == repr(before.checks)  # NaN does not equal itself
    errors = {c.name: c.measures["error"] for c in again.checks if "error" in c.measures}
    assert math.isnan(errors["outliers"]) and errors["overflow"] == math.inf


def test_the_summary_is_what_the_report_says(tmp_path: Path) -> None:
    write(mixed(), json=tmp_path / "r.json")
    stored = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (stored["schema"], stored["version"]) == ("glm-portable/verify-report", 1)
    suite = stored["summary"].pop("suite")
    assert len(suite) == 12
    assert stored["summary"] == {
        "verdict": "FAIL", "exit_code": 1, "pass": 16, "fail": 4, "unsupported": 1, "skipped": 1,
    }  # fmt: skip


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write(clean(), json=path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["later"] = stored["checks"][0]["later"] = 1
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert read(path) == clean()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": "other"}, "no report of `verify`"),
        ({"version": 2}, "version 2 of the format"),
        ({"checks": [{"level": "ops"}]}, r"is damaged \(KeyError: 'subject'\)"),
        ({"checks": 7}, "is damaged"),
        ({"about": []}, "is damaged"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    path = tmp_path / "r.json"
    write(clean(), json=path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, **change}), encoding="utf-8")
    with pytest.raises(UsageError, match=match):
        read(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("status", "fine"), ("findings", []), ("seconds", "long"), ("measures", {"error": None})],
)
def test_a_damaged_check_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "r.json"
    write(mixed(), json=path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    failing = next(check for check in stored["checks"] if check["status"] == "fail")
    failing[field] = value
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UsageError, match="is damaged"):
        read(path)


def test_text_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("<html>", encoding="utf-8")
    with pytest.raises(UsageError, match="is not JSON"):
        read(tmp_path / "r.json")
