"""Two deployments: told apart when they differ, and seldom when they do not."""

import math
import random
from typing import Any

import pytest

from glm_portable.verify.difference.compare import Comparison, checks, compare, distance
from glm_portable.verify.endpoint.chat import Call, Question, Said, Token
from glm_portable.verify.endpoint.client import Refused
from glm_portable.verify.endpoint.conversations import examination, question
from glm_portable.verify.results import Status


class Deployment:
    """Answers rightly at a rate, with log probabilities off by a shift and by noise.

    logprobs False: it refuses them.
    """

    def __init__(
        self,
        seed: int,
        *,
        rate: float = 0.8,
        shift: float = 0.0,
        noise: float = 0.01,
        **other: bool,
    ) -> None:
        self.draw = random.Random(f"deployment {seed}")
        self.rate, self.shift, self.noise = rate, shift, noise
        self.logprobs = other.get("logprobs", True)
        self.expected: dict[str, Any] = {}

    def knows(self, samples: int, seed: int) -> "Deployment":
        for case in examination(samples, seed):
            self.expected[str(question(case).messages)] = case.expected
        return self

    def ask(self, question: Question, **extra: Any) -> Said:
        if "logprobs" in extra:
            if not self.logprobs:
                raise Refused(400, "no logprobs")
            value = -1 + self.shift + self.draw.gauss(0, self.noise)
            return Said("x", tokens=(Token("x", value, {}), Token("y", value, {})))
        expected = self.expected[str(question.messages)]
        if self.draw.random() > self.rate:
            return Said("I cannot tell.", finish_reason="stop")
        calls = [call["function"] for call in expected.get("tool_calls", ())]
        made = tuple(Call(call["name"], call["arguments"]) for call in calls)
        reasoning = expected.get("reasoning_content") or ""
        return Said(expected["content"], reasoning, made, "tool_calls" if made else "stop")


def compared(a: Deployment, b: Deployment, samples: int = 60, **options: Any) -> Comparison:
    settings: dict[str, Any] = {"alpha": 0.05, "samples": samples, "seed": 3, **options}
    for side in (a, b):
        side.knows(samples, settings["seed"])
    return list(compare(a, b, **settings))[-1]


def test_a_worse_deployment_is_found_and_it_stops() -> None:
    found = compared(Deployment(1, rate=0.95), Deployment(2, rate=0.3))
    assert found.tasks.decided and not found.numbers.decided
    tasks, numbers = checks(found, 1.0)
    assert tasks.status is Status.FAIL and "the first is better" in tasks.findings[0]
    assert f"decided after {found.tasks.decided_at} samples" in tasks.findings[0]
    assert found.tasks.decided_at == len(found.tasks.path) and len(found.tasks.path) < 60
    assert numbers.status is Status.PASS and "at most 0.025" in numbers.note


def test_a_shift_below_what_text_shows_is_found_soon() -> None:
    found = compared(Deployment(1), Deployment(2, shift=0.1))
    assert found.numbers.decided_at is not None and found.numbers.decided_at <= 15
    assert not found.tasks.decided


def test_noise_alone_is_no_difference() -> None:
    """Both alarms have half of alpha each."""
    alpha, runs, alarms = 0.2, 25, 0
    for seed in range(runs):
        a, b = Deployment(2 * seed), Deployment(2 * seed + 1)
        found = compared(a, b, samples=16, alpha=alpha, seed=seed)
        alarms += found.tasks.decided or found.numbers.decided
    assert alarms <= runs * alpha + 3 * math.sqrt(runs * alpha * (1 - alpha))


def test_exact_deployments_are_never_told_apart() -> None:
    found = compared(Deployment(1, rate=1, noise=0), Deployment(2, rate=1, noise=0))
    assert found.numbers.heads == found.numbers.tails == found.tasks.heads == 0
    assert all(check.status is Status.PASS for check in checks(found, 0.0))


def test_without_log_probabilities_the_texts_are_compared() -> None:
    found = compared(Deployment(1, rate=1, logprobs=False), Deployment(2, rate=0.1))
    assert not found.logprobs and found.numbers.decided
    assert "the texts alone were compared" in checks(found, 0.0)[1].note


def test_only_one_kind_has_all_of_alpha() -> None:
    found = compared(Deployment(1), Deployment(2), samples=4, kinds=("tasks",))
    assert found.tasks.alpha == 0.05 and not found.numbers.path
    assert [check.subject for check in checks(found, 0.0)] == ["tasks"]


def said(*tokens: tuple[str, float]) -> Said:
    return Said(tokens=tuple(Token(text, value, {}) for text, value in tokens))


@pytest.mark.parametrize(
    "x, y, expected",
    [
        (said(("a", -1), ("b", -2)), said(("a", -1), ("b", -2)), 0),
        (said(("a", -1), ("b", -2)), said(("a", -1.5), ("b", -2)), 0.5),
        (said(("a", -1), ("b", -2), ("c", -1)), said(("a", -1), ("d", -2)), 2),
        (said(("a", -1), ("b", -2)), said(("a", -1)), 1),
        (Said("one"), Said("one"), 0),
        (Said("one"), Said("two"), 1),
    ],
)
def test_distance_is_symmetric(x: Said, y: Said, expected: float) -> None:
    assert distance(x, y) == distance(y, x) == pytest.approx(expected)
