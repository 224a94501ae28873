"""`glm-portable verify ops` and `verify make`, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glm_portable.backends import cpu
from glm_portable.cli import main
from glm_portable.verify.cases import CASES, EVERYTHING, digest
from glm_portable.verify.suite.command import chosen, is_slow

ODD = "linear: odd widths"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


def test_a_pass_is_0_and_the_report_says_what_ran(tmp_path: Path) -> None:
    result = run("ops", "--backend", "cpu", "--only", ODD, "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "r.json").read_text())
    (check,) = found["checks"]
    assert (check["subject"], check["name"], check["status"]) == ("linear", "odd widths", "pass")
    assert found["about"]["backend"] == "cpu" and found["about"]["seed"] == "0"
    assert found["about"]["suite"] == digest(chosen(ODD, False))[:16]


def test_a_numeric_failure_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.linear
    monkeypatch.setattr(cpu, "linear", lambda *a: right(*a) * 1.01)
    result = run("ops", "--backend", "cpu", "--only", ODD)
    assert result.exit_code == 1 and "slope" in result.output


def test_what_is_unsupported_is_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(w: Any) -> Any:
        from glm_portable.errors import UsageError

        raise UsageError("this format is not for this chip.")

    monkeypatch.setattr(cpu, "pack", refuse)
    result = run("ops", "--backend", "cpu", "--only", ODD)
    assert result.exit_code == 2 and "not for this chip" in result.output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--backend", "nonsense"], "'nonsense' is not one of auto"),
        (["--virtual", "gfx000"], "no chip 'gfx000' can be simulated"),
        (["--backend", "cpu", "--only", "nothing*"], "no case is called 'nothing*'"),
        (["--virtual", "interpreter-gfx942"], "TRITON_INTERPRET=1"),
    ],
)
def test_what_cannot_be_run_is_3(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    result = run("ops", *arguments)
    assert result.exit_code == 3 and said in result.stderr


def test_the_list() -> None:
    result = run("ops", "--list")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == len(CASES) + 1 and lines[-1].startswith(f"{len(CASES)} cases")
    assert any(line.startswith(ODD) for line in lines)
    full = run("ops", "--list", "--full", "--only", "*GLM-4.5*").output
    assert "real models" in full


def test_support() -> None:
    result = run("ops", "--backend", "reference", "--support", "--verbose")
    assert result.exit_code == 0 and "own: backends.reference.experts" in result.output


def test_perf() -> None:
    result = run("ops", "--backend", "cpu", "--perf", "--only", ODD, "--verbose")
    assert result.exit_code == 0 and " ms, the reference" in result.output


def test_a_simulated_gpu_gets_the_small_cases() -> None:
    assert is_slow("gfx942") and not is_slow(None) and not is_slow("Ascend910_9391")
    assert len(chosen(None, False, small=True)) < len(chosen(None, False)) == len(CASES)
    assert len(chosen(None, True)) == len(EVERYTHING)


def test_make(tmp_path: Path) -> None:
    out = tmp_path / "suite"
    result = run("make", "--out", str(out), "--only", ODD, "--seed", "5")
    assert result.exit_code == 0 and "Wrote 1 cases" in result.output
    index = json.loads((out / "index.json").read_text())
    assert list(index["cases"]) == ["linear-odd-widths"] and index["seed"] == 5
    assert index["suite"] == digest(chosen(ODD, False), 5)
    assert (out / "reader.py").is_file()
    (tmp_path / "other.txt").write_text("x")
    assert run("make", "--out", str(tmp_path)).exit_code == 3
