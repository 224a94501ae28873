"""What an observer is told, in which order, and what the last delta carries."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from glm_portable.engine.engine import Engine
from glm_portable.engine.observer import FinishedRequest
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.ops import KVCache, Step
from tests.engine.fake_model import FakeModel, Words, limits

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


class Log:
    """Keeps what it was told, as (name, value)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def on_step(self, num_tokens: int) -> None:
        self.told.append(("step", num_tokens))

    def on_tokens(self, first: Sequence[float], following: Sequence[float]) -> None:
        self.told += [("first", seconds) for seconds in first]
        self.told += [("next", seconds) for seconds in following]

    def on_finish(self, request: FinishedRequest) -> None:
        self.told.append(("finish", request))


class Broken(FakeModel):
    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        raise RuntimeError("no")


def run(model: FakeModel, log: Log, prompt: list[int], **overrides: int) -> list[Delta]:
    deltas: list[Delta] = []
    with Engine(model, Words(), limits(**overrides), observer=log) as engine:
        engine.submit(prompt, GREEDY, deltas.append, name="mine")
        engine.drain()
    return deltas


def test_times_and_counts_of_a_request() -> None:
    log = Log()
    deltas = run(FakeModel(), log, [1, 2, 3, 4, 5], max_num_batched_tokens=4)
    names = [name for name, _ in log.told]
    assert names == ["step", "step", "first", "step", "next", "step", "next", "finish"]
    assert [value for name, value in log.told if name == "step"] == [4, 1, 1, 1]
    finished = log.told[-1][1]
    assert finished.request_id == "mine-0"
    assert (finished.reason, finished.num_prompt_tokens, finished.num_generated) == ("length", 5, 3)
    assert finished.max_tokens == 3
    times: Any = finished.timeline
    assert times == deltas[-1].timeline and all(delta.timeline is None for delta in deltas[:-1])
    assert times.arrived <= times.scheduled <= times.first_token <= times.last_token
    first, *rest = [value for name, value in log.told if name in ("first", "next")]
    assert first == times.first_token - times.arrived
    assert sum(rest) == pytest.approx(times.last_token - times.first_token)


def test_a_request_that_fails_has_no_token(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    with caplog.at_level(logging.ERROR):
        run(Broken(), log, [1])
    assert [name for name, _ in log.told] == ["step", "finish"]
    finished = log.told[-1][1]
    assert finished.reason == "error" and finished.timeline.first_token is None
    assert finished.timeline.scheduled is not None
    assert "mine-0" in caplog.text, "the log does not say whose request failed"
