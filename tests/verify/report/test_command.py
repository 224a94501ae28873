"""The options that every `verify` command has, and `verify report`."""

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from glm_portable.verify.report import Outputs, finish, main, options, printed, read, write
from glm_portable.verify.results import Report
from tests.verify.report.samples import UNSUPPORTED, clean, mixed


def run(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], env={"COLUMNS": "80"})


@click.command()
@click.argument("which")
@options
def verify(which: str, outputs: Outputs) -> None:
    report = {"clean": clean, "mixed": mixed}[which]()
    checks = list(printed(report.checks, outputs.console, verbose=outputs.verbose))
    sys.exit(finish(Report(report.title, report.about, checks), outputs))


def test_a_command_gets_all_forms(tmp_path: Path) -> None:
    names = ["r.json", "r.xml", "r.html", "b.svg"]
    files = [tmp_path / name for name in names]
    flags = ["--json", "--junit", "--html", "--badge"]
    arguments = [part for pair in zip(flags, files, strict=True) for part in pair]
    result = run(verify, "clean", *arguments)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    assert read(files[0]) == clean()
    assert result.output.splitlines()[-1].startswith("PASS  4 checks")


def test_verbose_prints_each_check() -> None:
    assert "pass   ops linear: one token" not in run(verify, "clean").output
    assert "pass   ops linear: one token" in run(verify, "clean", "--verbose").output


def test_the_exit_code_is_the_reports(tmp_path: Path) -> None:
    assert run(verify, "mixed").exit_code == 1
    write(Report("x", {}, [UNSUPPORTED]), json=tmp_path / "r.json")
    assert run(main, tmp_path / "r.json").exit_code == 2


def test_a_stored_report_is_shown_and_written_again(tmp_path: Path) -> None:
    write(mixed(), json=tmp_path / "r.json")
    result = run(main, tmp_path / "r.json", "--html", tmp_path / "r.html", "-v")
    assert result.exit_code == 1
    assert "pass   ops linear: 1 tokens" in result.output
    assert result.output.splitlines()[-1].startswith("FAIL  22 checks")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_missing_file_is_exit_code_3(tmp_path: Path) -> None:
    result = run(main, tmp_path / "none.json")
    assert result.exit_code == 3
    assert "none.json cannot be read: No such file" in result.output


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    result = run(main, tmp_path / "r.json")
    assert result.exit_code == 2
    assert "is no report of `verify`" in result.output


@pytest.mark.parametrize("flag", ["--json", "--junit", "--html", "--badge"])
def test_a_missing_folder_is_refused_before_the_run(tmp_path: Path, flag: str) -> None:
    result = run(verify, "clean", flag, tmp_path / "none" / "file")
    assert result.exit_code == 2
    assert "no file can be written to" in result.output and "PASS" not in result.output


def test_a_report_that_cannot_be_written_is_exit_code_3(tmp_path: Path) -> None:
    code = finish(clean(), Outputs(json=tmp_path / "none" / "r.json"))
    assert code == 3
