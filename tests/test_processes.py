"""A server whose model is split among processes: same answers, an orderly end, a loud one."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from glm_portable import GLM
from glm_portable.cli import main
from glm_portable.errors import UsageError
from glm_portable.parallel import Parallel
from glm_portable.processes import Ranks
from tests.virtual.test_serving import MAIN, _until

PROMPTS = ["I am GLM", "What is 17 + 25?", "The weather in Paris"]
WAIT_S = 120


def started_by(process: int) -> list[int]:
    """What it has spawned; its other child is multiprocessing's own."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def others(server: int) -> list[int]:
    """The ranks that the engine's process has started."""
    [engine] = started_by(server)
    return started_by(engine)


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str], list[int]]]:
    """(URL, server, its other ranks); the server is killed if it still runs."""
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--dtype", "float32"]
    command += ["--backend", "cpu", *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        printed = _until(server.stderr, "Serving ")
        found = re.search(r"http://\S+/v1", printed)
        assert found and "on 2 ranks of cpu" in printed, printed
        yield found.group(), server, others(server.pid)
    finally:
        server.kill()
        server.wait(WAIT_S)


def answer(url: str, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    found: str = httpx.post(f"{url}/completions", json=body, timeout=WAIT_S).json()["choices"][0][
        "text"
    ]
    return found


def test_the_answers_are_those_of_one_process() -> None:
    """Even if they are drafted: the ranks run the MTP layer together, too."""
    alone = GLM.load(backend="cpu", dtype="float32")
    options: Any = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True}
    expected = [alone.generate(prompt, **options).content for prompt in PROMPTS]
    drafts = ("--speculative-config.num_speculative_tokens", "2")
    with served("--tensor-parallel-size", "2", *drafts) as (url, server, (other,)):
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            assert list(pool.map(lambda p: answer(url, p), PROMPTS)) == expected
        root = url.removesuffix("/v1")
        health = httpx.get(f"{root}/health?check=numerics", timeout=WAIT_S)
        assert health.status_code == 200, health.text
        metrics = httpx.get(f"{root}/metrics", timeout=WAIT_S).text
        assert re.search(r"vllm:spec_decode_num_accepted_tokens_total.* [1-9]", metrics), metrics
        server.terminate()
        assert server.wait(WAIT_S) == 0
        assert not Path(f"/proc/{other}").exists()


def test_a_rank_that_dies_ends_the_server_with_one_sentence() -> None:
    """In the middle of an answer, where rank 0 waits for it in a sum."""
    with served("--tp", "2", "--enable-expert-parallel") as (url, server, (other,)):
        body = {"prompt": PROMPTS[0], "max_tokens": 4000, "ignore_eos": True, "stream": True}
        last = ""
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=WAIT_S) as stream:
            for number, line in enumerate(stream.iter_lines()):
                last = line or last
                if number == 4:
                    os.kill(other, signal.SIGKILL)
        assert "The engine has ended" in last
        assert server.wait(WAIT_S) == 1
        assert server.stderr is not None
        sentences = [line for line in server.stderr if line.startswith("Error: ")]
        assert sentences == ["Error: rank 1 of 2 was ended by signal 9. The server ends.\n"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tp", "3"],
            "among 3 ranks: num_attention_heads 4 is no multiple of 3; .* 1, 2, 4 here",
        ),
        (["--tp", "4", "--ep", "3"], "among 4 ranks: 4 is no multiple of 3 groups of experts"),
        (["--ep-size", "2"], "among 1 rank: 1 is no multiple of 2 groups of .* can be 2, 4 here"),
    ],
)
def test_a_size_that_does_not_divide_the_model(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--port", "0", *arguments])
    assert done.exit_code == 2
    assert re.search(message, done.stderr) and len(done.stderr.splitlines()) == 1


def test_what_another_rank_could_not_load_is_told() -> None:
    ours, theirs = Pipe()
    theirs.send("rank 1 has no room: take more devices.")
    with pytest.raises(UsageError, match="rank 1 has no room: take more devices."):
        Ranks(Parallel(0, 2), [], [ours]).expect(1)


def test_a_rank_that_ended_while_loading_is_told() -> None:
    process = get_context("spawn").Process(target=sys.exit, args=(3,))
    process.start()
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(
        UsageError, match="rank 1 of 2 ended with code 3; its messages above say why"
    ):
        Ranks(Parallel(0, 2), [process], [ours]).expect(1)
