"""`glm-portable bench serve` against the real server, whose engine says what the test wrote."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from glm_portable import pocket
from glm_portable.bench.serve import drafts
from glm_portable.cli import main
from tests.serve.fake_engine import Running, Submitted, fake_server, says

ANSWER = "one two three four five"


def run(running: Running, *arguments: str) -> Result:
    command = ["bench", "serve", "--base-url", running.url, "--num-prompts", "6", *arguments]
    return CliRunner().invoke(main, command)


def answers(request: Submitted) -> Any:
    """Two tokens a delta, as with MTP."""
    return says(ANSWER, size=2)


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "vllm"])
def test_a_run_and_its_file(backend: str, tmp_path: Path) -> None:
    with fake_server() as running:
        running.engine.script = answers
        result = run(
            running, "--backend", backend, "--tokenizer", str(pocket.FOLDER), "--ignore-eos",
            "--random-input-len", "20", "--random-output-len", "9", "--max-concurrency", "2",
            "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99.9",
            "--goodput", "ttft:60000", "e2el:60000", "--temperature", "0", "--num-warmups", "2",
            "--metadata", "tp=8", "gpu=none", "--save-result", "--save-detailed",
            "--result-dir", str(tmp_path / "new"), "--label", "mine",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        requests = running.engine.requests
    assert len(requests) == 6 + 2
    assert all(r.params.ignore_eos and r.params.max_tokens == 9 for r in requests)
    assert all(r.params.temperature == 0 for r in requests)
    [path] = (tmp_path / "new").iterdir()
    assert re.fullmatch(r"mine-infqps-concurrency2-pocket-\d{8}-\d{6}\.json", path.name)
    report = json.loads(path.read_text())
    tokens = len(says(ANSWER)) - 1 + 1  # and the end-of-text token
    assert report["completed"] == 6 and report["failed"] == 0
    assert report["total_output_tokens"] == 6 * tokens
    assert report["total_input_tokens"] == sum(report["input_lens"]) == 6 * 20
    assert report["generated_texts"] == [ANSWER] * 6
    assert (report["tp"], report["gpu"], report["request_rate"]) == ("8", "none", "inf")
    assert report["request_goodput"] == report["request_throughput"] > 0
    names = {f"{kind}_{m}_ms" for kind in ("mean", "median", "std", "p50", "p99.9")
             for m in ("ttft", "tpot", "itl", "e2el")}  # fmt: skip
    assert names <= report.keys()
    # What it says for each request gives the totals that it prints.
    lines = dict(re.findall(r"^(.+?):\s+([\d.]+)$", result.output, re.MULTILINE))
    assert lines["Successful requests"] == "6"
    assert lines["Total generated tokens"] == str(6 * tokens)
    assert float(lines["P99.9 ITL (ms)"]) == pytest.approx(report["p99.9_itl_ms"], abs=0.01)


def test_what_drafts_did_in_the_run_is_reported(tmp_path: Path) -> None:
    """The counters of before the run, and those of the warm-up, are not its own."""
    path = tmp_path / "r.json"
    with fake_server() as running:

        def drafting(request: Submitted) -> Any:
            now = running.engine.stats_now
            first, second = now.accepted_by_position or (5, 1)
            running.engine.stats_now = replace(
                now,
                num_drafts=now.num_drafts + 4,
                num_draft_tokens=now.num_draft_tokens + 7,
                num_accepted_tokens=now.num_accepted_tokens + 5,
                accepted_by_position=(first + 3, second + 2),
            )
            return answers(request)

        running.engine.script = drafting
        result = run(
            running, "--num-warmups", "2", "--max-concurrency", "1",
            "--random-input-len", "10", "--save-result", "--result-filename", str(path),
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["spec_decode_num_drafts"] == 6 * 4
    assert report["spec_decode_draft_tokens"] == 6 * 7
    assert report["spec_decode_accepted_tokens"] == 6 * 5
    assert report["spec_decode_acceptance_rate"] == pytest.approx(100 * 5 / 7)
    assert report["spec_decode_acceptance_length"] == 1 + 5 / 4
    assert report["spec_decode_per_position_acceptance_rates"] == [3 / 4, 2 / 4]
    table = result.output.partition("---Speculative Decoding---")[2]
    shown = dict(re.findall(r"^ *(.+?):\s+([\d.]+)$", table, re.MULTILINE))
    assert shown["Acceptance length"] == "2.25" and shown["Position 1"] == "50.00"


def test_without_drafts_nothing_is_said_of_them() -> None:
    with fake_server() as running:
        assert "Speculative" not in run(running, "--random-input-len", "10").output


@pytest.mark.parametrize("answer", [404, "no metrics\n= 3 {", ""])
def test_a_server_without_such_counters(answer: int | str) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        status, text = (200, answer) if isinstance(answer, str) else (answer, "")
        return httpx.Response(status, text=text)

    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(reply)) as http:
        assert drafts.counts(http) is None
    assert drafts.summarize(None, None) == {}


def test_ids_are_sent_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with fake_server() as running:
        result = run(
            running, "--random-input-len", "10", "--save-result", "--result-filename", str(path)
        )
        assert result.exit_code == 0, result.output
        assert all(len(request.prompt_ids) == 10 for request in running.engine.requests)
    report = json.loads(path.read_text())
    assert report["model_id"] == "pocket" and "errors" not in report


def test_failed_requests_are_counted_with_their_reasons() -> None:
    with fake_server() as running:
        result = run(running, "--model", "another")
    assert result.exit_code == 1
    assert "Failed requests:                         6" in result.output
    assert "6 x status 404:" in result.output and "does not exist" in result.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--goodput", "itl:5"], "--goodput itl:5"),
        (["--goodput", "ttft"], "'ttft' must be NAME:VALUE"),
        (["--percentile-metrics", "latency"], "'latency': use ttft"),
        (["--metric-percentiles", "101"], "101 is not in 0 to 100"),
        (["--metric-percentiles", "x"], "'x' must be numbers"),
        (["--header", "x"], "'x' must be NAME=VALUE"),
        (["--extra-body", "[1]"], "must be a JSON object"),
        (["--extra-body", "{"], "not valid JSON"),
        (["--max-concurrency", "0"], "--max-concurrency 0"),
        (["--request-rate", "0"], "above 0"),
        (["--endpoint", "/v1/chat/completions"], "does not fit --backend openai"),
        (["--dataset-name", "sharegpt", "--model", "m"], "--dataset-path"),
        (["--base-url", "localhost"], "is no address"),
        (["--base-url", "http://127.0.0.1:1"], "names no model at /v1/models"),
    ],
)
def test_bad_options(options: list[str], sentence: str) -> None:
    with fake_server() as running:
        result = run(running, *options)
    assert result.exit_code == 2 and sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_bench_model_is_still_a_command(tmp_path: Path) -> None:
    for arguments in (["--dtype", "int4"], [str(tmp_path), "--dtype", "int4"]):
        result = CliRunner().invoke(main, ["bench", *arguments])
        assert result.exit_code == 2 and "not 'int4'" in result.stderr
    shown = CliRunner().invoke(main, ["bench", "--help"])
    assert "serve" in shown.stdout and shown.exit_code == 0
