"""The written suite: the same bytes from every process, read and judged with NumPy alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.errors import UsageError
from glm_portable.verify.cases import Case, named
from glm_portable.verify.suite.artefact import judge, reader, write
from glm_portable.verify.suite.artefact.models import GLM45, MODELS, SMALL, shapes

CHOSEN = [
    named("linear", "odd widths"), named("linear", "fp8, dynamic activations"),
    named("linear", "NaN and infinities"), named("route", "exact ties"),
    named("route", "bias around 7"), named("experts", "int8, dynamic activations"),
    named("attend", "decode of unequal lengths, e4m3fnuz pages, scales 2 and 0.25"),
    named("rope_store", "half a head, e4m3fn pages"), named("silu_mul", "odd width"),
    named("rms_norm", "with residual"),
]  # fmt: skip
ALONE = "import sys; sys.modules['torch'] = None; sys.modules['ml_dtypes'] = None; import runpy; "


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "made"
    write(folder, CHOSEN)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_processes_and_any_number_of_threads_give_the_same_bytes(
    suite: Path, tmp_path: Path
) -> None:
    names = [(case.op, case.name) for case in CHOSEN]
    program = (
        "from pathlib import Path; from glm_portable.verify.suite.artefact import write; "
        "from glm_portable.verify.cases import named; "
        f"write(Path({str(tmp_path / 'again')!r}), [named(*n) for n in {names!r}])"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "77"}
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=root)
    ours, theirs = contents(suite), contents(tmp_path / "again")
    assert ours.keys() == theirs.keys() and len(ours) > 40
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_another_seed_asks_something_else(suite: Path, tmp_path: Path) -> None:
    index = write(tmp_path / "other", CHOSEN[:1], seed=1, whole=False)
    first = json.loads((suite / "index.json").read_text())
    assert index["suite"] != first["suite"] and index["seed"] == 1


def test_nothing_but_a_suite_is_replaced(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="holds no suite"):
        write(tmp_path, CHOSEN[:1], whole=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    write(tmp_path / "new", CHOSEN[:1], whole=False)
    write(tmp_path / "new", CHOSEN[1:2], whole=False)
    assert len([p for p in (tmp_path / "new").iterdir() if p.is_dir()]) == 1


def folder_of(suite: Path, case: Case) -> str:
    for path in suite.glob("*/case.json"):
        about = json.loads(path.read_text())
        if (about["subject"], about["name"]) == (case.op, case.name):
            return path.parent.name
    raise AssertionError(case)


def test_numpy_reads_what_torch_reads(suite: Path) -> None:
    """BF16 and both dialects of FP8 by their bits."""
    kinds = set()
    for path in suite.glob("*/*.safetensors"):
        ours, theirs = reader.read(path), load_file(path)
        for name, tensor in theirs.items():
            kinds.add(tensor.dtype)
            wide = tensor.float() if tensor.is_floating_point() else tensor
            assert np.array_equal(ours[name], wide.numpy(), equal_nan=True), (path, name)
    assert {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8} <= kinds


def test_every_code_of_both_dialects() -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    for kind, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E4M3FNUZ", torch.float8_e4m3fnuz)):
        expected = codes.view(dtype).float().numpy()
        assert np.array_equal(reader.FP8[kind][:256], expected, equal_nan=True)


def results(suite: Path, out: Path, cases: list[Case]) -> Path:
    """The reference's own results in BF16, as a vendor would hand them in."""
    out.mkdir()
    for case in cases:
        found = {n: t.contiguous() for n, t in case.run(reference, torch.bfloat16).items()}
        save_file(found, out / f"{folder_of(suite, case)}.safetensors")
    return out


def run_alone(suite: Path, outputs: Path, *cases: str) -> tuple[int, str]:
    """Judge and reader where torch cannot be imported."""
    arguments = [str(suite / "judge.py"), str(suite), str(outputs), *cases]
    program = (
        f"{ALONE}sys.path.insert(0, {str(suite)!r}); sys.argv = {arguments!r}; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_reader_lists_a_file_alone(suite: Path) -> None:
    path = suite / folder_of(suite, CHOSEN[0]) / "expected.safetensors"
    command = [sys.executable, "-I", str(suite / "reader.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and sorted(listed) == sorted(load_file(path)), done.stderr


def test_they_judge_without_torch(suite: Path, tmp_path: Path) -> None:
    outputs = results(suite, tmp_path / "out", CHOSEN)
    folders = [folder_of(suite, case) for case in CHOSEN]
    code, said = run_alone(suite, outputs, *folders)
    assert code == 0, said
    assert said.count("pass ") == len(CHOSEN) and "0 of 10 cases fail" in said
    code, said = run_alone(suite, outputs)
    assert code == 1 and "FAIL model-pocket\n     no results" in said


def breaks() -> Iterator[tuple[str, str, str, float]]:
    yield "linear", "odd widths", "slope", 1.05
    yield "linear", "fp8, dynamic activations", "error", 0.0
    yield "attend", CHOSEN[6].name, "slope", 2.0
    yield "experts", "int8, dynamic activations", "error", -1.0
    yield "silu_mul", "odd width", "slope", 0.5


@pytest.mark.parametrize("op, name, what, factor", list(breaks()))
def test_the_judge_sees_what_is_wrong(
    suite: Path, op: str, name: str, what: str, factor: float
) -> None:
    case = named(op, name)
    place = suite / folder_of(suite, case)
    about = json.loads((place / "case.json").read_text())
    got = {n: t.float().numpy() for n, t in case.run(reference, torch.bfloat16).items()}
    assert judge.judge(about, got, reader.read(place / "expected.safetensors")) == []
    got["y"] = got["y"] * factor
    found = judge.judge(about, got, reader.read(place / "expected.safetensors"))
    assert any(f"y: {what}" in f for f in found), found


def test_the_judge_sees_swallowed_nan_and_other_experts(suite: Path) -> None:
    def judged(case: Case, change: dict[str, Tensor]) -> list[str]:
        place = suite / folder_of(suite, case)
        about = json.loads((place / "case.json").read_text())
        got = {n: t.float().numpy() for n, t in change.items()}
        return judge.judge(about, got, reader.read(place / "expected.safetensors"))

    linear, ties = CHOSEN[2], CHOSEN[3]
    y = linear.run(reference, torch.bfloat16)["y"]
    assert any("nonfinite" in f for f in judged(linear, {"y": y.nan_to_num(0)}))
    routed = ties.run(reference, torch.bfloat16)
    assert judged(ties, routed) == []
    routed["experts"][0] = routed["experts"][0].flip(0)
    assert judged(ties, routed) == ["experts: others are chosen"]
    assert judged(ties, {"weights": routed["weights"]}) == ["experts: missing"]


def test_layers_and_the_pocket_model_are_there(suite: Path) -> None:
    index = json.loads((suite / "index.json").read_text())
    assert {"layer-dense", "layer-air", "layer-glm45", "model-pocket"} <= index["cases"].keys()
    for name in ("layer-air", "layer-glm45"):
        expected = load_file(suite / name / "expected.safetensors")
        assert expected["judged"].sum() > 16 and expected["added"].isfinite().all()
    assert len(MODELS) == 4 and SMALL["use_qk_norm"] is False and GLM45["use_qk_norm"] is True


def test_a_model_without_thought_fails(suite: Path) -> None:
    place = suite / "model-pocket"
    about = json.loads((place / "case.json").read_text())
    expected = reader.read(place / "expected.safetensors")
    tokens, vocabulary = len(expected["ids"]), about["attributes"]["config"]["vocab_size"]
    flat = np.zeros((tokens, vocabulary), "f4")
    assert "kl" in judge.judge(about, {"logits": flat}, expected)[0]
    rest = 1 - np.exp(expected["logprobs"].astype("f8")).sum(-1, keepdims=True)
    others = np.log(np.maximum(rest, 1e-12) / (vocabulary - expected["ids"].shape[1]))
    right = np.repeat(others, vocabulary, -1)
    np.put_along_axis(right, expected["ids"], expected["logprobs"], -1)
    assert judge.judge(about, {"logits": right}, expected) == []


def test_names_of_a_layers_tensors() -> None:
    from glm_portable.config import ModelConfig
    from tests.random_checkpoint import tensor_shapes

    config = ModelConfig.from_dict(GLM45)
    known = dict(tensor_shapes(GLM45))
    for index in (0, 1):
        ours = dict(shapes(config, index))
        prefix = f"model.layers.{index}."
        assert ours == {n: s for n, s in known.items() if n.startswith(prefix)}
