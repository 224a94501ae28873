"""Reports side by side."""

from pathlib import Path

from click.testing import CliRunner

from glm_portable.cli import main
from glm_portable.verify.report import write
from glm_portable.verify.report.comparison import table
from glm_portable.verify.results import Check, Report, Status


def check(level: str, name: str, error: float, status: Status = Status.PASS) -> Check:
    findings = ("too far off",) if status is Status.FAIL else ()
    measures = {"error": error, "allowed": 0.5}
    return Check(level, "linear", name, status, findings, measures)


REPORT = Report(
    "ops and model",
    {"backend": "rocm", "simulated": "gfx942", "torch": "2.13.0"},
    [
        check("ops", "one token", 0.1),
        check("ops", "a|b", 0.25),
        Check("ops", "route", "ties", Status.SKIPPED),
        check("model", "head", 1.0, Status.FAIL),
    ],
)


def test_a_row_for_each_level() -> None:
    head, line, ops, model = table([REPORT]).splitlines()
    assert head.count("|") == line.count("|") == model.count("|") == ops.count("|") - 1
    assert head.startswith(
        "| machine | level | verdict | passed | skipped | unsupported | failed |"
    )
    assert ops == r"| rocm, simulated gfx942 | ops | PASS | 2 | 1 |  |  | 0.5 | linear: a\|b |"
    assert model == "| rocm, simulated gfx942 | model | FAIL |  |  |  | 1 | 2 | linear: head |"


def test_a_chip_is_named_once() -> None:
    about = {"backend": "rocm on a simulated gfx942", "simulated": "gfx942", "chip": "gfx942 here"}
    rows = table([Report("ops", about, [check("ops", "one token", 0.1)])]).splitlines()
    assert rows[-1].startswith("| rocm on a simulated gfx942 | ops |")
    rows = table([Report("ops", {"backend": "cpu", "chip": "EPYC"}, REPORT.checks)]).splitlines()
    assert rows[-1].startswith("| cpu, EPYC | model |")


def test_a_level_that_measured_nothing() -> None:
    report = Report("endpoint", {}, [Check("endpoint", "tools", "types", Status.PASS)])
    assert table([report]).splitlines()[-1] == "| endpoint | endpoint | PASS | 1 |  |  |  |  |  |"


def test_the_command_puts_stored_reports_side_by_side(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        write(REPORT, json=file)
    result = CliRunner().invoke(main, ["verify", "table", *map(str, files)])
    assert result.exit_code == 0
    assert result.stdout == table([REPORT, REPORT]) + "\n"


def test_the_command_refuses_what_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    for name, said in (("a.json", "is no report"), ("absent.json", "No such file")):
        result = CliRunner().invoke(main, ["verify", "table", str(tmp_path / name)])
        assert result.exit_code == 3 and said in result.stderr
