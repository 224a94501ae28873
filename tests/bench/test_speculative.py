"""The break-even of drafts, and the command that measures it; not how fast anything is."""

import json
from pathlib import Path

import pytest

from glm_portable.bench.speculative.break_even import least_acceptance, tokens_a_step
from glm_portable.bench.speculative.measure import Clocked, load
from glm_portable.bench.speculative.run import run_bench
from glm_portable.errors import UsageError
from tests.random_checkpoint import small_config, write_checkpoint


def test_tokens_a_step() -> None:
    assert tokens_a_step(0, 3) == 1
    assert tokens_a_step(1, 3) == 4
    assert tokens_a_step(0.5, 2) == 1.75


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.99])
def test_drafts_pay_from_where_their_tokens_make_up_for_their_cost(
    k: int, acceptance: float
) -> None:
    cost = tokens_a_step(acceptance, k)
    assert least_acceptance(cost, k) == pytest.approx(acceptance)


def test_what_costs_nothing_always_pays_and_what_costs_too_much_never() -> None:
    assert least_acceptance(0.9, 1) == pytest.approx(0, abs=1e-9)
    assert least_acceptance(2.0, 1) == pytest.approx(1)
    assert least_acceptance(2.01, 1) is None


def test_a_report_on_the_pocket_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    run_bench(
        None, backend="reference", dtype="float32", most=2, batch=2, questions=2, max_tokens=6,
        repeats=1, chain_questions=1, json_path=path,
    )  # fmt: skip
    report = json.loads(path.read_text())
    off, one, two = report["rows"]
    assert [row["k"] for row in report["rows"]] == [0, 1, 2]
    assert off["ratio"] == off["ratio_whole"] == off["tokens_a_step"] == off["cost"] == 1
    assert off["accepted"] == [] and off["draft_ms"] is None
    for row in (one, two):
        assert row["same_answers"] == 2
        assert len(row["accepted"]) == row["k"]
        assert 1 < row["tokens_a_step"] <= 1 + row["k"]
        assert row["verify_ms"] > 0 and row["draft_ms"] > 0 and row["cost"] > 0
        assert row["ratio"] == pytest.approx(row["tokens_per_second"] / off["tokens_per_second"])
    assert set(report["chains"]) == {"normed", "residual"}
    # The first draft is the same in both.
    assert report["chains"]["normed"][0] == report["chains"]["residual"][0]
    shown = capfd.readouterr().out
    assert "pays from" in shown and "hidden state before the norm" in shown


def test_a_checkpoint_without_a_tokenizer_is_asked_random_tokens(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config())
    subject = load(tmp_path, "reference", "float32")
    first, second = subject.ask(2)
    assert first != second and max(first + second) < subject.vocab_size
    assert Clocked(subject.model).has_mtp


def test_a_checkpoint_without_the_layer_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config(num_nextn_predict_layers=0))
    with pytest.raises(UsageError, match="no MTP layer to draft with"):
        load(tmp_path, "reference", "float32")


def test_a_question_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="exceed the window of 8192: lower --max-tokens"):
        run_bench(None, backend="reference", dtype="float32", questions=1, max_tokens=8200)
