"""`glm-portable verify golden` and `verify model`, as they are typed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm_portable.verify import subject
from glm_portable.verify.command import verify
from glm_portable.verify.generated import CONFIGS, small_checkpoint
from glm_portable.verify.golden.record import Golden
from glm_portable.verify.model.checks import PARTS
from glm_portable.verify.model.command import FORMATS, SMALL
from glm_portable.verify.model.command import PARTS as SAID_PARTS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(verify, [str(argument) for argument in arguments])


def test_the_choices_are_those_that_exist() -> None:
    assert tuple(subject.FORMATS) == FORMATS and tuple(CONFIGS) == SMALL and PARTS == SAID_PARTS


def test_a_golden_file_of_prompts_and_a_model_held_against_it(tmp_path: Path) -> None:
    model, out = small_checkpoint("air-like", tmp_path / "model"), tmp_path / "golden"
    prompts = tmp_path / "prompts"
    prompts.write_text("[1, 2, 3, 4, 5, 6, 7, 8, 9]\n[20, 30, 40, 50, 60]\n")
    made = run("golden", model, "--out", out, "--prompts", prompts, "--memory", "8GiB")
    assert made.exit_code == 0, made.output
    assert "in float64: 12 tokens, at most" in made.stderr
    assert Golden.load(out).prompts == ((1, 2, 3, 4, 5, 6, 7, 8, 9), (20, 30, 40, 50, 60))
    report = tmp_path / "report.json"
    options = ["--backend", "reference", "--reference", out, "--parts", "layers,stream"]
    judged = run("model", model, *options, "--json", report)
    assert judged.exit_code == 0, judged.output
    said = json.loads(report.read_text())
    subjects = {check["subject"] for check in said["checks"]}
    assert {"layer 0", "head", "kernels"} <= subjects
    skipped = {c["subject"]: c["note"] for c in said["checks"] if c["status"] == "skipped"}
    assert skipped.keys() == {"layers"} and "--reference live" in skipped["layers"]
    assert run("model", model, *options, "--format", "fp8").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["golden", "--small", "air-like"], "--out is missing"),
        (["golden", "--small", "air-like", "--out", "x", "--memory", "1MiB"], "raise it, or take"),
        (["golden", "--small", "air-like", "--out", "x", "--prompts", "absent"], "cannot be read"),
        (["model", "--parts", "layers,heads"], "'heads' is none of layers, stream"),
        (["model", "--lengths", "long"], "must be numbers of tokens"),
        (["model", "--reference", "absent"], "holds no golden file"),
        (["model", "folder", "--small", "air-like"], "exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 3 and message in result.stderr, result.output
    assert "Traceback" not in result.output


def test_the_size_is_said_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["air-like"]))
    result = run("golden", tmp_path, "--size", "--tokens", 100, "--count", 2)
    assert result.exit_code == 0 and "for 200 tokens in 2 prompts" in result.stderr
