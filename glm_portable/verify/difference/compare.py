"""Two deployments on the same questions, sample by sample, until there is enough evidence.

Tasks: each is answered by both; where just one is right, that is a coin, fair if both are equally
good. Numbers: one deployment answers twice and the other once; if both compute the same up to
their noise, it is a fair coin whether the second or the foreign answer is nearer to the first
(exchangeability: the duo-trio test of food science). It needs no model of the noise, and a
difference that a deployment does not have with itself shows within some ten questions.
"""

import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from glm_portable.verify.difference.sequential import Wager
from glm_portable.verify.endpoint.chat import Question, Said
from glm_portable.verify.endpoint.client import Refused
from glm_portable.verify.endpoint.conversations import examination, question
from glm_portable.verify.endpoint.load import right
from glm_portable.verify.results import Check, Status

KINDS = ("tasks", "numbers")
LENGTH = 32
"""Tokens of an answer whose log probabilities are compared."""
APART = 1.0
"""Distance of each token after two answers have parted; log probabilities differ by less."""
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 1}


class Side(Protocol):
    """A deployment: an `Exam` is one."""

    def ask(self, question: Question, **extra: Any) -> Said: ...


@dataclass
class Comparison:
    """What is known after some samples; each of the kinds has half of alpha."""

    alpha: float
    kinds: tuple[str, ...] = KINDS
    rights: list[int] = field(default_factory=lambda: [0, 0])
    samples: int = 0
    logprobs: bool = True

    def __post_init__(self) -> None:
        share = self.alpha / len(self.kinds)
        self.tasks = Wager(share, two_sided=True)
        self.numbers = Wager(share, two_sided=False)

    @property
    def open(self) -> bool:
        """Whether another sample could still decide something."""
        wagers = {"tasks": self.tasks, "numbers": self.numbers}
        return any(not wagers[kind].decided for kind in self.kinds)


def compare(
    a: Side, b: Side, *, alpha: float, samples: int, seed: int, kinds: tuple[str, ...] = KINDS
) -> Iterator[Comparison]:
    """The comparison after every sample, until all is decided or `samples` were taken.

    Raises Refused and Broken if a server does not answer.
    """
    found = Comparison(alpha, kinds)
    found.logprobs = "numbers" in kinds and _has_logprobs(a) and _has_logprobs(b)
    coins = random.Random(seed)
    with ThreadPoolExecutor(2) as pool:
        for case in examination(samples, seed):
            asked = question(case)
            # Both answers also fill the prefix caches: none of the next ones finds them empty.
            pair = list(pool.map(lambda side, q=asked: side.ask(q), (a, b)))
            rights = [right(case, said) for said in pair]
            found.rights = [n + r for n, r in zip(found.rights, rights, strict=True)]
            if "tasks" in kinds and not found.tasks.decided:
                found.tasks.toss(rights[0] if rights[0] != rights[1] else None)
            if "numbers" in kinds and not found.numbers.decided:
                found.numbers.toss(_trio(a, b, asked, coins, found.logprobs))
            found.samples += 1
            yield found
            if not found.open:
                return


def _trio(a: Side, b: Side, asked: Question, coins: random.Random, logprobs: bool) -> bool | None:
    """Whether the foreign answer is further from the first than the own one; None: as far."""
    own, foreign = (a, b) if coins.random() < 0.5 else (b, a)
    extra = LOGPROBS if logprobs else {}
    short = replace(asked, max_tokens=LENGTH)
    order = [own, own, foreign]
    coins.shuffle(order)  # so that no place in the order belongs to one of them
    said = [(side, side.ask(short, **extra)) for side in order]
    first, second = (answer for side, answer in said if side is own)
    [other] = (answer for side, answer in said if side is foreign)
    within, between = distance(first, second), distance(first, other)
    return None if within == between else between > within


def distance(x: Said, y: Said) -> float:
    """How differently two answers were computed: symmetric, 0 for the same to the last digit."""
    if not x.tokens or not y.tokens:
        return 0.0 if x.everything == y.everything else APART
    total = 0.0
    for i, (p, q) in enumerate(zip(x.tokens, y.tokens, strict=False)):
        if p.text != q.text:
            return total + APART * (max(len(x.tokens), len(y.tokens)) - i)
        total += min(abs(p.logprob - q.logprob), APART)
    return total + APART * abs(len(x.tokens) - len(y.tokens))


def _has_logprobs(side: Side) -> bool:
    try:
        hello = Question("logprobs", [{"role": "user", "content": "Hello"}], max_tokens=1)
        return bool(side.ask(hello, **LOGPROBS).tokens)
    except Refused:
        return False


def checks(found: Comparison, seconds: float) -> list[Check]:
    """The verdicts on tasks and numbers."""
    judged = {"tasks": _tasks, "numbers": _numbers}
    return [judged[kind](found, seconds) for kind in found.kinds]


def _tasks(found: Comparison, seconds: float) -> Check:
    a, b = found.rights
    wager = found.tasks
    findings: tuple[str, ...] = ()
    if wager.decided:
        better, worse = ("first", "second") if wager.heads > wager.tails else ("second", "first")
        findings = (
            f"the {better} is better: where only one was right, the first was {wager.heads} times "
            f"and the {worse if better == 'first' else better} {wager.tails} times; decided after "
            f"{wager.decided_at} samples",
        )
    measures = {"right_first": a, "right_second": b, "only_first": wager.heads}
    return _check("tasks", wager, findings, measures | {"only_second": wager.tails}, found, seconds)


def _numbers(found: Comparison, seconds: float) -> Check:
    wager = found.numbers
    findings: tuple[str, ...] = ()
    if wager.decided:
        findings = (
            f"they compute different numbers: {wager.heads} of {wager.heads + wager.tails} times "
            "the answer of the other was further off than a second answer of the same; decided "
            f"after {wager.decided_at} samples",
        )
    measures = {"further": wager.heads, "nearer": wager.tails}
    return _check("numbers", wager, findings, measures, found, seconds)


def _check(
    subject: str,
    wager: Wager,
    findings: tuple[str, ...],
    measures: Mapping[str, float],
    found: Comparison,
    seconds: float,
) -> Check:
    notes = [
        f"{wager.decided_at or len(wager.path)} samples; two equal deployments are told apart "
        f"with a probability of at most {wager.alpha:g}"
    ]
    if not findings:
        notes.append("no difference shown, which does not show that there is none")
    if subject == "numbers" and not found.logprobs:
        notes.append("a server sends no log probabilities: the texts alone were compared")
    return Check(
        level="endpoint",
        subject=subject,
        name="first against second",
        status=Status.FAIL if findings else Status.PASS,
        findings=findings,
        measures={**measures, "samples": len(wager.path), "log10_evidence": wager.path[-1]},
        series={"log10 evidence": wager.path},
        note="; ".join(notes),
        seconds=seconds,
    )
