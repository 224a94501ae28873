"""What a step's time is told apart into, by a clock that the test moves, and the command once."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from glm_portable.bench.host import execute
from glm_portable.bench.host.execute import Column
from glm_portable.bench.host.load import Load
from glm_portable.bench.host.null import VOCABULARY, null_tokenizer
from glm_portable.bench.host.watch import PARTS, Watch
from glm_portable.cli import main
from glm_portable.engine.types import Delta

WAIT_S = 60.0


class Clock:
    """Stands still until the test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> Callable[..., str]:
        def work(*_: Any) -> str:
            self.now += seconds
            return ""

        return work


class Tokenizer:
    vocab_size = 9

    def __init__(self, clock: Clock) -> None:
        self.add: Callable[[Iterable[int]], str] = clock.take(3)

    def stream(self) -> "Tokenizer":
        return self


def test_the_parts_of_a_step_add_up_to_it() -> None:
    clock = Clock()
    watch = Watch(clock)
    decoder = watch.tokenizer(Tokenizer(clock)).stream()  # type: ignore[arg-type]
    on_delta = watch.callback(clock.take(5))  # type: ignore[arg-type]  # what it returns is lost
    for _ in range(8):
        watch.forward()
        clock.now += 1000  # the model's own
        watch.logits()
        clock.now += 7  # sampling
        for _ in range(2):
            decoder.add([1])
            clock.now += 11  # what the request keeps
            on_delta(Delta())
        clock.now += 13  # scheduling
    found = watch.medians()
    assert found == {
        "prepare": 13, "sample": 7, "append": 22, "detokenise": 6, "hand over": 10,
    }  # fmt: skip
    assert watch.period() == 1000 + sum(found.values())
    assert tuple(found) == PARTS


def test_the_null_tokenizer_is_of_the_real_size() -> None:
    tokenizer = null_tokenizer()
    assert tokenizer.vocab_size == VOCABULARY and tokenizer.eos_token_id == (VOCABULARY - 1,)
    words = [tokenizer.token_text(i) for i in range(300, VOCABULARY - 1, 997)]
    assert len(set(words)) == len(words) and all(len(w) == 5 and w[0] == " " for w in words)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    # So many steps because a thread's clock, read from another thread, is some milliseconds behind.
    result = CliRunner().invoke(
        main,
        ["bench", "host", "--sequences", "3", "--input-len", "20", "--steps", "150",
         "--repeats", "1", "--step-ms", "1", "--no-arithmetic", "--json", str(path)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    for kind in ("greedy", "sampled"):
        assert found[kind].keys() == {"3"}
        rows = found[kind]["3"]
        assert rows["engine alone"] > 0 and 0 < rows["engine's process, CPU: its thread"]
        assert 0 < rows["engine's process, CPU"]
        assert 0 < rows["server's process, CPU: with sockets"]
        assert all(row in result.output for row in rows)


def test_medians_of_several_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each of both kinds three times; the arithmetic of this CPU once."""
    seconds = iter((5.0, 1.0, 2.0, 9.0, 7.0, 8.0))

    def column(load: Load, tokenizer: object, step_s: float, arithmetic: bool) -> Column:
        return {"part": next(seconds)} | ({"slow": 100.0} if arithmetic else {})

    monkeypatch.setattr(execute, "_column", column)
    path = tmp_path / "host.json"
    command = ["bench", "host", "--sequences", "3", "--json", str(path)]
    assert CliRunner().invoke(main, command).exit_code == 0
    found = json.loads(path.read_text())
    assert found["greedy"] == {"3": {"part": 2.0, "slow": 100.0}}
    assert found["sampled"] == {"3": {"part": 8.0, "slow": 100.0}}


def test_it_serves_the_model_that_computes_nothing() -> None:
    command = [
        sys.executable, "-m", "glm_portable", "bench", "host", "--port", "0",
        "--sequences", "2", "--input-len", "20", "--steps", "10", "--step-ms", "0.1",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("Serving a null model at ")
            url = line.split()[-1]
            body = {"prompt": [300] * 8, "max_tokens": 6, "ignore_eos": True}
            for _ in range(3):  # one by one: it does not wait until all sequences are in
                answer = httpx.post(f"{url}/completions", json=body, timeout=WAIT_S).json()
                assert answer["usage"]["completion_tokens"] == 6
            server.send_signal(signal.SIGTERM)
            assert server.wait(WAIT_S) == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sequences", "x"], "'x' must be counts"),
        (["--sequences", "0"], "at least 1"),
        (["--steps", "3"], "--steps at least 10"),
        (["--repeats", "0"], "--repeats is 0"),
    ],
)
def test_bad_options(options: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["bench", "host", *options])
    assert result.exit_code == 2 and sentence in result.stderr
