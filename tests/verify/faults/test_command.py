"""`glm-portable verify faults`: its table, rates and exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm_portable.cli import main
from glm_portable.verify.faults import catalogue
from glm_portable.verify.faults.fault import OPS, Fault
from glm_portable.verify.faults.results import of_first


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", "faults", *arguments])


def test_the_table_and_the_rates(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    found = run("--only", "silu-hard", "--json", str(file))
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[0].startswith("| fault | in | stands for | op by op | in the model |")
    assert lines[2].startswith("| silu-hard | silu_mul | sigmoid approximated by a line | killed")
    assert lines[-2:] == ["ops: 1 of 1 killed, 100.0%", "model: 1 of 1 killed, 100.0%"]
    names = [check["name"] for check in json.loads(file.read_text())["checks"]]
    assert names == ["silu-hard, ops", "silu-hard, model"]


def test_a_survivor_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Fault("nothing", "silu_mul", "a test", OPS, "a reason",
                    {"silu_mul": of_first(lambda x: x)})  # fmt: skip
    monkeypatch.setattr(catalogue, "FAULTS", (nothing,))
    found = run()
    assert found.exit_code == 1, found.output
    assert "| nothing | silu_mul | a test | SURVIVES | a reason |  |" in found.output
    assert "ops: 0 of 1 killed, 0.0%" in found.output


def test_a_list_runs_nothing() -> None:
    found = run("--list", "--level", "model", "--only", "mtp-")
    assert found.exit_code == 0
    assert "mtp-norms-swapped" in found.output and "killed" not in found.output
    assert found.output.splitlines()[-1] == "8 faults."


def test_a_name_that_no_fault_has_is_refused() -> None:
    found = run("--only", "nonsense")
    assert found.exit_code == 3
    assert "no fault has 'nonsense' in its name" in found.stderr
