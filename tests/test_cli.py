"""The command line: options from three places, errors as one sentence, what is printed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glm_portable import serving
from glm_portable.cli import main
from glm_portable.engine_task import EngineTask
from glm_portable.errors import UsageError


def run(*arguments: str, text: str | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=text, env=env)


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0 and result.output.startswith("glm-portable, version 0.")


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "glm_portable", "--version"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.startswith("glm-portable, version 0."), result.stderr


def test_help_does_without_torch() -> None:
    """It takes seconds to import, more on a busy machine."""
    code = "import sys, glm_portable.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_generate_prints_the_answer_alone_on_stdout() -> None:
    result = run("generate", "Who are you?", "--temperature", "0", "--max_tokens", "100")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("I am GLM-Pocket") and result.stdout.count("\n") == 1
    assert "The user asks" in result.stderr and "MB/s" in result.stderr


def test_generate_without_thinking_and_raw() -> None:
    quick = run("generate", "Who are you?", "--temperature", "0", "--no-thinking")
    assert "The user asks" not in quick.stderr and "GLM-Pocket" in quick.stdout
    raw = run("generate", "1, 2, 3,", "--raw", "--temperature", "0", "--max-tokens", "3")
    assert raw.exit_code == 0 and raw.stdout.strip()


def test_drafts_do_not_change_the_answer(tmp_path: Path) -> None:
    """Asked for with dots, as vLLM does, and in a file."""
    base = ("generate", "Who are you?", "--temperature", "0", "--no-thinking")
    file = tmp_path / "options.yaml"
    file.write_text("speculative-config: {method: mtp, num_speculative_tokens: 2}\n")
    plain = run(*base).stdout
    for options in (
        ("--speculative-config.method", "mtp", "--speculative-config.num_speculative_tokens", "1"),
        ("--config", str(file)),
    ):
        result = run(*base, *options)
        assert (result.exit_code, result.stdout) == (0, plain), result.output


def test_command_line_wins_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("max-tokens: 1\ntemperature: 0\nignored_dtype: 1\n")
    assert (
        "'ignored_dtype' is no option of generate"
        in run("generate", "x", "--config", str(file)).stderr
    )
    file.write_text("max-tokens: 1\ntemperature: 0\nraw: true\n")
    base = ("generate", "one two three", "--config", str(file))
    environment = {"GLM_PORTABLE_MAX_TOKENS": "4"}
    words = [
        run(*base).stdout,
        run(*base, env=environment).stdout,
        run(*base, "--max-tokens", "9", env=environment).stdout,
    ]
    lengths = [len(w) for w in words]
    assert lengths == sorted(lengths) and len(set(lengths)) == 3, words


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "x", "/no/such/model"], "/no/such/model"),
        (["generate", "x", "--backend", "tpu"], "backend 'tpu' is not one of"),
        (["generate", "x", "--temperature", "-1"], "temperature"),
        (["serve", "--port", "99999"], "port 99999"),
        (["serve", "--port", "0", "--max-model-len", "9000"], "max_model_len 9000 exceeds"),
        (["serve", "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["serve", "--default-chat-template-kwargs", "[]"], "'[]' is no JSON object; write it as"),
        (["serve", "--default-chat-template-kwargs", "off"], "'off' is no JSON object"),
        (["serve", "--default-chat-template-kwargs", '{"tools": 1}'], "kwargs: 'tools' is not"),
        (["serve", "--preemption-mode", "swap"], "preemption_mode swap is not supported"),
        (
            ["serve", "--chunked-prefill-size", "64", "--max-num-batched-tokens", "65"],
            "which mean the same; give one of them",
        ),
        (
            ["serve", "--chunked-prefill-size", "64", "--no-enable-chunked-prefill"],
            "--chunked-prefill-size 64 contradicts --no-enable-chunked-prefill",
        ),
        (["serve", "--scheduling-policy", "lifo"], "lifo"),
        (["serve", "--port", "0", "--gpu-memory-utilization", "90"], "is 90.0; it must be above 0"),
        (
            ["serve", "--port", "0", "--kv-cache-memory-bytes", "9", "--mem-fraction-static", "1"],
            "--kv-cache-memory and --mem-fraction-static each say",
        ),
        (["serve", "--port", "0", "--kv-cache-memory", "99999"], "raise --kv-cache-memory"),
        (["generate", "x", "--kv-cache-dtype", "fp8_e5m2"], "fp8_e5m2 is not supported"),
        (["generate", "x", "--kv-cache-dtype", "int4"], "'int4' is not one of auto, bfloat16"),
        (["serve", "--speculative-config", "{"], "'{' is no JSON object"),
        (["generate", "x", "--speculative-config.num_speculative_tokens", "9"], "is 9; it must be"),
        (["chat", "--speculative-algorithm", "NGRAM"], "is NGRAM; it must be EAGLE or NEXTN"),
        (["serve", "--pipeline-parallel-size", "2"], "No such option"),
        (["evaluate", "--skills", "juggling"], "juggling"),
        (["evaluate", "--url", "http://127.0.0.1:9"], "did not answer"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output


def test_chat_remembers_switches_and_ends() -> None:
    lines = "My name is Anna.\nWhat is my name?\n/thinking\nWho are you?\n/clear\n/exit\n"
    result = run("chat", "--temperature", "0", text=lines)
    assert result.exit_code == 0, result.stderr
    answers = result.stdout.splitlines()
    assert len(answers) == 3 and "Anna" in answers[1] and "GLM-Pocket" in answers[2]
    assert "thinking off" in result.stderr


def test_chat_ends_with_the_input() -> None:
    assert run("chat", text="").exit_code == 0


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], {"enable_prefix_caching": True, "enable_chunked_prefill": True}),
        (["--disable-radix-cache"], {"enable_prefix_caching": False}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--no-enable-chunked-prefill"], {"enable_chunked_prefill": False}),
        (["--chunked-prefill-size", "-1"], {"enable_chunked_prefill": False}),
        (["--chunked-prefill-size", "512"], {"max_num_batched_tokens": 512}),
        (["--kv-cache-memory-bytes", "5"], {"memory_bytes": 5}),
        (["--gpu-memory-utilization", "0.5"], {"gpu_memory_utilization": 0.5}),
        (["--scheduling-policy", "priority"], {"scheduling_policy": "priority"}),
        (["--enable-deterministic-inference"], {"enable_deterministic_inference": True}),
    ],
)
def test_names_of_vllm_and_sglang_say_how_large_and_in_what_order(
    arguments: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run_server(model: str | None, limit_options: dict[str, Any], **others: Any) -> int:
        asked.update(serving._limit_options(**limit_options))
        return 0

    monkeypatch.setattr(serving, "run_server", run_server)
    assert run("serve", *arguments).exit_code == 0
    assert {key: asked[key] for key in expected} == expected


@pytest.mark.parametrize("parser", ["glm45", "glm4_moe"])
def test_vllms_names_of_the_parsers(parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older one stands in the command lines of GLM-4.5's first weeks."""
    monkeypatch.setattr(serving, "run_server", lambda *arguments, **options: 0)
    flags = ("--tool-call-parser", parser, "--reasoning-parser", parser)
    assert run("serve", *flags, "--enable-auto-tool-choice").exit_code == 0


def test_deterministic_inference_decides_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def start(main: Any, task: EngineTask) -> None:
        asked.append(task.options["enable_deterministic_inference"])
        raise UsageError("enough seen")

    monkeypatch.setattr(serving, "start", start)
    for arguments in ([], ["--enable-deterministic-inference"]):
        assert run("serve", "--port", "0", *arguments).exit_code == 2
    assert asked == [False, True]
