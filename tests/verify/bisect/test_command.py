"""`verify bisect` and `verify replay` as a person calls them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm_portable import ops
from glm_portable.cli import main
from tests.random_checkpoint import small_config, write_checkpoint
from tests.verify.bisect.wrong_backends import SplitDecode, StalePage, Wrong

SIZES = {"num_hidden_layers": 1, "num_nextn_predict_layers": 0, "torch_dtype": "bfloat16"}


@pytest.fixture
def model(tmp_path: Path) -> str:
    write_checkpoint(tmp_path / "model", small_config(**SIZES))
    return str(tmp_path / "model")


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(main, ["verify", *arguments])


def with_wrong(monkeypatch: pytest.MonkeyPatch, backend: Wrong) -> None:
    load = ops.load
    monkeypatch.setattr(ops, "load", lambda name: backend if name == "wrong" else load(name))


def test_a_right_pair(model: str) -> None:
    done = run("bisect", "reference", "reference", "--model", model)
    assert done.exit_code == 0, done.output
    assert "B = reference (the second)" in " ".join(done.output.split())
    assert "nothing found: 2 parts compared, 55 calls of ops judged in 2 of them" in done.output
    assert not list(Path().glob("bisect-*"))


def test_a_wrong_one_and_its_reproducer(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_wrong(monkeypatch, SplitDecode())
    out, report = tmp_path / "out", tmp_path / "report.json"
    options = ("--model", model, "--out", str(out), "--json", str(report))
    done = run("bisect", "reference", "wrong", *options)
    assert done.exit_code == 1, done.output
    said = " ".join(done.output.split())
    assert "FOUND: wrong is wrong in layer 0: attention over the KV pages (attend)" in said
    assert "in step 2 (decode of two sequences)" in said
    assert "of 2 sequences only 1" in said
    assert "some lengths, batches or page tables" in said and "(wrong alone)" in said
    stored = json.loads(report.read_text())
    failed = [check for check in stored["checks"] if check["status"] == "fail"]
    assert {"attend", "layer 0"} >= {check["subject"] for check in failed}
    folder = out / "layer-0-attend-b"
    assert {"a", "b", "plain", "exact", "inputs"} == {p.stem for p in folder.glob("*.safetensors")}
    about = json.loads((folder / "call.json").read_text())["about"]
    assert about["machines"]["b"]["backend"] == "wrong" and about["steps"]

    still = run("replay", str(folder))
    assert still.exit_code == 1 and "STILL WRONG on wrong: layer 0" in still.output
    right = run("replay", str(folder), "--backend", "reference")
    assert right.exit_code == 0 and "right on reference: layer 0" in right.output


def test_a_reproducer_that_cannot_be_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is said all the same."""
    with_wrong(monkeypatch, SplitDecode())
    (tmp_path / "file").write_text("")
    options = ("--model", model, "--out", str(tmp_path / "file" / "out"))
    done = run("bisect", "reference", "wrong", *options)
    assert done.exit_code == 1 and "FOUND: wrong is wrong in layer 0" in done.output
    assert "Error: a reproducer cannot be written" in done.output


def test_what_is_right_alone_is_said_to_be(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_wrong(monkeypatch, StalePage())
    done = run("bisect", "reference", "wrong", "--model", model, "--out", str(tmp_path / "out"))
    assert done.exit_code == 1 and "Alone it is right: what ran before" in done.output
    with_wrong(monkeypatch, StalePage())
    (folder,) = (tmp_path / "out").glob("*attend*")
    again = run("replay", str(folder))
    assert again.exit_code == 0 and "It was right alone then, too" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bisect", "reference", "nothing"], "nothing"),
        (["bisect", "reference", "cpu@gfx942"], "gfx942"),
        (["bisect", "reference", "reference", "--prefill", "1"], "prefill"),
        (["bisect", "reference", "reference", "--model", "no/such"], "no/such"),
        (["replay", "/nowhere"], "/nowhere is no stored call"),
    ],
)
def test_what_cannot_be_run(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 3, done.output
    assert message in done.output and "Traceback" not in done.output


def test_a_foreign_and_a_damaged_folder(tmp_path: Path, model: str) -> None:
    assert run("replay", model).exit_code == 3
    with_header = tmp_path / "case"
    with_header.mkdir()
    (with_header / "call.json").write_text('{"schema": "glm-portable/call", "version": 1}')
    done = run("replay", str(with_header))
    assert done.exit_code == 3 and "is damaged" in done.output
