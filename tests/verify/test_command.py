"""What `glm-portable verify` makes of input that it cannot use."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_portable.cli import main


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["report"], "Missing argument 'FILE'"),
        (["--backend", "cpu", "report", "x.json"], "--backend belongs behind report"),
        (["--backend", "nonsense"], "'nonsense' is not one of auto, "),
        (["report", "absent.json"], "absent.json cannot be read"),
    ],
)
def test_what_cannot_be_run_exits_with_3(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 would say that something is unsupported."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["verify", *arguments])
    assert result.exit_code == 3
    assert said in result.stderr
