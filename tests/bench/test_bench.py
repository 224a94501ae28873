"""The bench command end to end on the pocket model; no test looks at how fast anything is."""

import json
from pathlib import Path

import pytest
import torch

from glm_portable import pocket
from glm_portable.bench import run_bench
from glm_portable.bench.process import Sample, Samples, Worker
from glm_portable.bench.worker import Ours, Transformers
from glm_portable.errors import UsageError


def test_both_sides_compute_the_same_tokens() -> None:
    ours = Ours(pocket.FOLDER, torch.float32, "cpu")
    theirs = Transformers(pocket.FOLDER, torch.float32)
    with torch.inference_mode():
        for tokens in (1, 16, 33):
            assert ours.prefill(tokens)().tolist() == theirs.prefill(tokens)().flatten().tolist()
        run = theirs.decode(3, 4)
        run()
        run()  # the second repetition starts where the first did


def test_deterministic_inference_is_a_side_of_its_own() -> None:
    ours = Ours(pocket.FOLDER, torch.float32, "cpu", deterministic=True)
    assert getattr(ours.model.ops, "batch_invariant")  # noqa: B009  # no attribute of Ops
    with Worker("deterministic", pocket.FOLDER, "float32", "reference", 1) as worker:
        assert worker.sample("decode", batch=1, steps=1).wall > 0


def test_experts_read_counts_the_experts_of_a_step() -> None:
    ours = Ours(pocket.FOLDER, torch.float32, "cpu")
    config = ours.model.config
    sparse = config.num_hidden_layers - config.first_k_dense_replace
    with torch.inference_mode():
        alone, crowd = ours.experts_read(1, 2)(), ours.experts_read(16, 2)()
    assert alone == sparse * config.num_experts_per_tok
    assert alone < crowd <= sparse * config.n_routed_experts


def test_a_report_on_the_pocket_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    run_bench(None, threads=1, prefill=8, batches=(2,), steps=2, repeats=2, json_path=path)
    report = json.loads(path.read_text())
    rows = {row["what"]: row for row in report["rows"]}
    assert list(rows) == ["prefill 8", "decode, batch 2", "load", "peak while loading"]
    assert report["threads"] == 1
    assert all(row["ours"] > 0 and row["peer"] > 0 and row["ratio"] > 0 for row in rows.values())
    decode = rows["decode, batch 2"]
    assert decode["ratio"] == pytest.approx(decode["ours"] / decode["peer"])
    assert rows["load"]["ratio"] == pytest.approx(rows["load"]["peer"] / rows["load"]["ours"])
    # The pocket model's weights are in memory, and Python with torch is no gibibyte.
    size = (pocket.FOLDER / "model.safetensors").stat().st_size / 2**30
    assert size < rows["peak while loading"]["ours"] < size + 1
    assert "decode, batch 2" in capfd.readouterr().out


def test_medians_leave_out_disturbed_repetitions_while_three_remain() -> None:
    quiet = [Sample(wall, wall, 0.0) for wall in (1.0, 2.0, 3.0)]
    disturbed = [Sample(9.0, 4.0, 0.5)] * 3
    assert Samples([*disturbed, *quiet]).wall == 2.0
    assert Samples([*disturbed, *quiet[:2]]).wall == 9.0
    assert Samples([*disturbed, *quiet]).cpu == 3.5
    assert Samples([*disturbed, *quiet]).best == 1.0


def test_bad_input_is_refused() -> None:
    with pytest.raises(UsageError, match="dtype bfloat16 or float32, not 'int4'"):
        run_bench(None, dtype="int4")
    with pytest.raises(UsageError, match="transformers or deterministic or none, not 'vllm'"):
        run_bench(None, against="vllm")


def test_a_side_that_cannot_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the ours process ended with 1"):
        Worker("ours", tmp_path, "bfloat16", "cpu", 1)
