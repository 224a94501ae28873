"""lm-eval: log probabilities over completions and answers over chat, on two tiny tasks.

Its scores are compared with the model's own, computed without a server: a server that leaves out
one log probability makes lm-eval wrong, and lm-eval does not notice.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conversation import MODEL
from tests.clients.server import ROOT, Server

CLIENT = "lm_eval"
QUESTIONS = [
    {"question": "<|user|>\nWhat is 17 + 25?<|assistant|>\n", "choices": ["17 + 25 = 42", "No."]},
    {"question": "Hello", "choices": [" there", " world", "!"]},
    {"question": "The weather in Paris is", "choices": [" sunny", " <think>", "\n"]},
    {"question": "1, 2, 3,", "choices": [" 4", " 5, 6"]},
]
CHOICES = """
task: pocket_choices
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""
SUMS = """
task: pocket_sums
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: generate_until
test_split: test
doc_to_text: "What is {{a}} + {{b}}?"
doc_to_target: "{{a}} + {{b}} = {{a + b}}"
generation_kwargs: {until: ["<|user|>"], max_gen_toks: 200}
metric_list: [{metric: exact_match}]
"""


def evaluate(folder: Path, task: str, docs: list[Any], *options: str) -> Any:
    """Run lm-eval on one task; its results and its samples."""
    data, name = folder / "docs.jsonl", folder / "task.yaml"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    name.write_text(task % data, encoding="utf-8")
    output = ["--output_path", str(folder / "out"), "--log_samples", "--tasks", str(name)]
    command = [sys.executable, "-m", "lm_eval", "run", *options, *output]
    environment = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text(encoding="utf-8"))["results"], found


@pytest.mark.parametrize("batch_size", [1, 4])
def test_log_probabilities_over_completions(
    server: Server, server_python: str, tmp_path: Path, batch_size: int
) -> None:
    url = f"{server.api}/completions"
    arguments = f"model={MODEL},base_url={url},tokenizer_backend=remote,num_concurrent=2"
    options = ("--model", "local-completions", "--model_args", arguments)
    _, samples = evaluate(tmp_path, CHOICES, QUESTIONS, *options, "--batch_size", str(batch_size))
    pairs = [(doc["question"], choice) for doc in QUESTIONS for choice in doc["choices"]]
    samples.sort(key=lambda sample: sample["doc_id"])
    found = [tuple(answer) for sample in samples for answer in sample["filtered_resps"]]
    expected = reference(server_python, pairs)
    assert [str(greedy) for _, greedy in found] == [str(greedy) for _, greedy in expected]
    totals = [float(total) for total, _ in found]
    assert totals == pytest.approx([total for total, _ in expected], abs=1e-3)


def reference(python: str, pairs: list[tuple[Any, Any]]) -> list[tuple[float, bool]]:
    command = [python, "tests/clients/reference.py"]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(pairs), capture_output=True, text=True, check=True
    )
    return [tuple(pair) for pair in json.loads(done.stdout)]


def test_sums_over_chat(server: Server, tmp_path: Path) -> None:
    docs = [{"a": a, "b": b} for a, b in [(17, 25), (31, 12), (40, 27), (11, 18)]]
    url = f"{server.api}/chat/completions"
    arguments = f"model={MODEL},base_url={url},num_concurrent=2,max_retries=1"
    options = ("--model", "local-chat-completions", "--model_args", arguments)
    results, samples = evaluate(tmp_path, SUMS, docs, *options, "--apply_chat_template")
    assert results["pocket_sums"]["exact_match,none"] == 1.0, samples
