"""What a report says of the machine."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from glm_portable import ops
from glm_portable.verify.report import about, environment


def test_backend_chip_and_versions() -> None:
    said = about(ops.load("reference"))
    assert list(said)[:2] == ["backend", "chip"] and said["backend"] == "reference"
    assert said["torch"] == torch.__version__
    assert {"glm-portable", "Python", "platform"} <= set(said)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", said["date"])


def test_a_backend_that_says_nothing_is_named_with_its_device() -> None:
    class Silent:
        name, device = "mine", torch.device("meta")

    assert list(about(Silent()).items())[:2] == [("backend", "mine"), ("device", "meta")]


def test_a_server_is_judged_without_a_backend() -> None:
    assert next(iter(about())) == "torch"


def test_the_revision_is_a_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert "revision" not in about()
    git("init", "-q")
    assert "revision" not in about()  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    assert re.fullmatch(r"[0-9a-f]{12}", about()["revision"])
    (tmp_path / "a").write_text("2")
    assert re.fullmatch(r"[0-9a-f]{12}, with changes", about()["revision"])
