"""A soak passes on a server that is well, and notices each way in which one is not."""

import asyncio
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from click.testing import CliRunner

from glm_portable.bench.soak import run
from glm_portable.bench.soak.cases import Maker
from glm_portable.bench.soak.memory import Memory, resident_mib
from glm_portable.bench.soak.run import Found, soak
from glm_portable.bench.soak.verdict import violations
from glm_portable.cli import main
from glm_portable.engine.types import Delta
from glm_portable.errors import UsageError
from tests.bench.soak.double import Body, Double, Reply
from tests.serve.fake_engine import Submitted, fake_server, says

KINDS = {case.kind for case in Maker("m").all(1)}
COUNT = 3 * len(KINDS)
"""Requests that are asked alone, before the load."""


def soaked(double: Double) -> Found:
    """Under a clock that ends after a hundred readings."""

    async def go() -> Found:
        async with double.client() as http:
            clock = itertools.count()
            return await soak(
                http, "m", seconds=100, clients=2, count=3, now=lambda: float(next(clock))
            )

    return asyncio.run(go())


def wrong(found: Found, **changes: Any) -> list[str]:
    usual: dict[str, Any] = {"warm_up": 0.0, "max_drift": 0.02, "max_unlike": 0.01}
    return list(violations(found, **(usual | changes)))


def test_a_server_that_is_well() -> None:
    double = Double()
    found = soaked(double)
    assert wrong(found) == [] and found.refused == {}
    assert found.tally.asked.keys() == KINDS
    assert found.tally.asked.total() == len(double.asked) - COUNT > 80
    assert found.tally.compared > 50 and found.tally.unlike.total() == 0
    assert found.metrics == {run.RUNNING: 0, run.WAITING: 0, run.USED: 0}
    # Prefixes are shared, seeds and lengths differ, and some stream while others do not.
    bodies = [body for body in double.asked if "messages" in body]
    assert len({body["max_tokens"] for body in bodies}) > 4
    assert {bool(body.get("stream")) for body in bodies} == {True, False}


def set_fields(**fields: Any) -> Callable[[Reply, Body], None]:
    def spoil(reply: Reply, body: Body) -> None:
        for name, value in fields.items():
            setattr(reply, name, value)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (set_fields(status=500), "status 500"),
        (set_fields(done=False), "without [DONE]"),
        (set_fields(finish_reason=None), "without [DONE] or finish_reason"),
        (set_fields(error="out of pages"), "in the stream: out of pages"),
        (set_fields(tokens=0), "0 tokens, where 1 to"),
        (set_fields(tokens=999), "999 tokens, where 1 to"),
        (set_fields(tokens=1, finish_reason="length"), "finish_reason length after 1 of"),
        (set_fields(text="You asked: What is 1 + 1?"), "the answer is not to its prompt"),
        (set_fields(tool=("get_weather", "{}"), text=""), "tools: the answer is not to its prompt"),
        (set_fields(text='{"answer": "7", "unit": "none"}'), "schema: JSON against its schema"),
        (set_fields(text="seven"), "schema: no JSON, but 'seven'"),
    ],
)
def test_a_server_that_fails_under_load(
    spoil: Callable[[Reply, Body], None], sentence: str
) -> None:
    found = soaked(Double(spoil, after=COUNT))
    assert any(sentence in line for line in wrong(found)), wrong(found)


def test_a_failure_before_the_load_counts_too() -> None:
    def once(reply: Reply, body: Body) -> None:
        if len(double.asked) == 3:
            reply.status = 500

    double = Double(once)
    [line] = wrong(soaked(double))
    assert "alone: status 500" in line


def test_other_words_are_counted_and_allowed_in_a_small_share() -> None:
    def sometimes(reply: Reply, body: Body) -> None:
        if len(double.asked) % 20 == 0:
            reply.text = reply.text.replace("You", "They")

    double = Double(sometimes, after=COUNT)
    found = soaked(double)
    assert 0 < found.tally.unlike.total() < 0.1 * found.tally.compared
    assert "You asked: What" in found.tally.examples[0] and "They" in found.tally.examples[0]
    assert wrong(found, max_unlike=0.1) == []
    [line] = wrong(found, max_unlike=0.01)
    assert "unlike those given alone" in line


def test_what_a_server_does_not_support_is_left_out() -> None:
    def refuse(reply: Reply, body: Body) -> None:
        if "response_format" in body:
            reply.status = 400

    double = Double(refuse)
    found = soaked(double)
    assert wrong(found) == [] and found.refused.keys() == {"schema"}
    assert sum("response_format" in body for body in double.asked) == 1
    assert "schema" not in found.tally.asked


def test_a_server_that_answers_nothing() -> None:
    lines = wrong(soaked(Double(set_fields(status=404))))
    assert "no answer could be compared with the one given alone" in lines


def test_requests_and_pages_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PATIENCE_S", 0.0)
    left = 'vllm:num_requests_running 0\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n'
    [line] = wrong(soaked(Double(metrics=left)))
    assert line == "vllm:kv_cache_usage_perc is 0.25 after the load, not 0"
    found = soaked(Double(metrics=None))
    assert found.metrics is None and wrong(found) == []


def test_memory_that_grows() -> None:
    found = soaked(Double())
    found.memory.times += [float(t) for t in range(100)]
    # A cache that fills while warming up, then 3 % in the rest of the time.
    found.memory.sizes += [100 + t for t in range(25)] + [200 + 6 * t / 74 for t in range(75)]
    [line] = wrong(found, warm_up=25.0)
    assert "resident memory grew by 3.0%" in line
    assert wrong(found, warm_up=25.0, max_drift=0.04) == []
    assert Memory([0, 1, 2, 3], [100, 101, 99, 100]).drift(0) < 0.01
    assert Memory([0, 1], [100, 50]).drift(1) == 0


def begin_and_wait(begun: Event, go_on: Event) -> None:
    begun.set()
    go_on.wait()


def test_memory_of_a_process() -> None:
    assert resident_mib(os.getpid()) > 10
    context = get_context("spawn")
    begun, go_on = context.Event(), context.Event()
    engine = context.Process(target=begin_and_wait, args=(begun, go_on))
    alone = resident_mib(os.getpid())
    engine.start()
    begun.wait()
    with_engine = resident_mib(os.getpid())
    go_on.set()
    engine.join()
    assert with_engine > alone + 1  # an interpreter
    with pytest.raises(UsageError, match="--pid 999999999: there is no such process"):
        resident_mib(999999999)


def test_a_score_that_changed() -> None:
    found = soaked(Double())
    before = {"all": {"thinking": {"correct": 0.75}}}
    after = {"all": {"thinking": {"correct": 0.5}}}
    assert wrong(found, before=before, after=before) == []
    [line] = wrong(found, before=before, after=after)
    assert line == "the evaluation scores 50.0 % (thinking), where it was 75.0 % (thinking)"


def answers(request: Submitted) -> Any:
    """What was asked, at the length that was asked for."""
    text = f"You asked {request.prompt[-40:]}"
    if request.params.grammar is not None:
        text = '{"answer": 7, "unit": "none"}'
    deltas = says(text.replace("<", "(").replace("|", ""))
    most = request.params.max_tokens or 1
    if most >= len(deltas):
        return deltas
    return [*deltas[: most - 1], Delta(deltas[most - 1].token_ids, finish_reason="length")]


def breaks(request: Submitted) -> Any:
    return [Delta(finish_reason="error", error="broken")]


@pytest.mark.parametrize("well", [True, False])
def test_the_command(well: bool) -> None:
    with fake_server() as running:
        now = running.engine.stats_now
        running.engine.stats_now = replace(now, running=0, waiting=0, pages_used=0)
        running.engine.script = answers if well else breaks
        result = CliRunner().invoke(
            main,
            ["bench", "soak", "--base-url", running.url, "--minutes", "0.01", "--clients", "2",
             "--pid", str(os.getpid()), "--evaluate-samples", "0", "--max-drift", "9"],
        )  # fmt: skip
    assert result.exit_code == (0 if well else 1), result.output
    assert ("VIOLATION" in result.output) is not well
    assert result.output.splitlines()[-1] == ("passed" if well else "FAILED")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--warm-up-minutes", "30"], "less than --minutes"),
        (["--pid", "999999999"], "no such process"),
        (["--base-url", "http://127.0.0.1:1"], "did not answer"),
    ],
)
def test_bad_options(options: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["bench", "soak", *options])
    assert result.exit_code == 2 and sentence in result.stderr
