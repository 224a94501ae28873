"""The soak: every case alone, then all of them at once for a while, then whether all is as before.

What must hold: no request fails; an answer is to its own prompt, and nearly always the one given
alone (sums in bfloat16 depend on how many requests share a step, so a few may differ in words);
the server's memory does not grow; afterwards nothing runs and no page is used; the evaluation
scores as before.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from glm_portable.bench.soak.cases import Case, Maker
from glm_portable.bench.soak.client import Answer, Failed, ask
from glm_portable.bench.soak.memory import Memory

RUNNING, WAITING, USED = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
)  # fmt: skip
_PATIENCE_S = 30.0
_EXAMPLES = 8


@dataclass
class Tally:
    """What happened under load. problems: sentence to count; asked, unlike: kind to count.

    examples: of answers unlike those given alone, what was said first and then.
    """

    asked: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    compared: int = 0
    unlike: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, case: Case, answer: Answer, alone: Answer | None) -> None:
        self.asked[case.kind] += 1
        self.tokens += answer.tokens
        problem = case.problem(answer)
        if problem:
            self.problems[f"{case.kind}: {problem}"] += 1
        elif alone is not None and not answer.left:
            self.compared += 1
            if answer.said != alone.said:
                self.unlike[case.kind] += 1
                self._show(case, answer, alone)
            if mixed_up(case, answer, alone):
                self.problems[f"{case.kind}: the answer is not to its prompt"] += 1

    def _show(self, case: Case, answer: Answer, alone: Answer) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{case.kind}: {_all(alone)!r} / {_all(answer)!r}")


def mixed_up(case: Case, answer: Answer, alone: Answer) -> bool:
    """Whether an answer lacks what its prompt alone can bring about."""
    return bool(case.key) and case.key in _all(alone) and case.key not in _all(answer)


def _all(answer: Answer) -> str:
    return " ".join([answer.reasoning, answer.text, *itertools.chain(*answer.tools)])


@dataclass(frozen=True)
class Found:
    """The whole soak. cases: those the server can answer, with what it says alone."""

    cases: Sequence[tuple[Case, Answer]]
    refused: Mapping[str, str]
    tally: Tally
    memory: Memory
    seconds: float
    metrics: Mapping[str, float] | None


async def soak(
    http: httpx.AsyncClient,
    model: str,
    *,
    seconds: float,
    clients: int,
    pid: int | None = None,
    count: int = 12,
    now: Callable[[], float] = time.perf_counter,
) -> Found:
    """count: cases of each kind. now: the clock that ends the load."""
    cases, refused, early = await _alone(http, list(Maker(model).all(count)))
    tally, memory, begin = Tally(problems=early), Memory(), now()
    watching = None if pid is None else asyncio.create_task(memory.watch(pid))
    try:
        await asyncio.gather(
            *(_keep_asking(http, cases, tally, seed, begin + seconds, now)
              for seed in range(clients))
        )  # fmt: skip
    finally:
        if watching is not None:
            watching.cancel()
            # Its own error (the process has gone) is worth more than silence.
            await asyncio.gather(watching, return_exceptions=not watching.done())
    spent = now() - begin
    return Found(cases, refused, tally, memory, spent, await _quiet(http))


async def _alone(
    http: httpx.AsyncClient, cases: Sequence[Case]
) -> tuple[list[tuple[Case, Answer]], dict[str, str], Counter[str]]:
    """What each case says alone. A kind whose first case is refused (4xx) is left out."""
    answers: list[tuple[Case, Answer]] = []
    refused: dict[str, str] = {}
    problems: Counter[str] = Counter()
    for case in cases:
        if case.kind in refused:
            continue
        try:
            answer = await ask(http, case.path, case.body)
        except Failed as error:
            if str(error).startswith("status 4"):
                refused[case.kind] = str(error)
            else:
                problems[f"{case.kind}, alone: {error}"] += 1
            continue
        if problem := case.problem(answer):
            problems[f"{case.kind}, alone: {problem}"] += 1
        answers.append((case, answer))
    return answers, refused, problems


async def _keep_asking(
    http: httpx.AsyncClient,
    cases: Sequence[tuple[Case, Answer]],
    tally: Tally,
    seed: int,
    end: float,
    now: Callable[[], float],
) -> None:
    order = list(cases)
    random.Random(seed).shuffle(order)
    for number, (case, alone) in enumerate(itertools.cycle(order)):
        if number and now() >= end:
            return
        try:
            tally.add(case, await ask(http, case.path, case.body, case.leave_after), alone)
        except Failed as error:
            tally.asked[case.kind] += 1
            tally.problems[f"{case.kind}: {error}"] += 1


async def _quiet(http: httpx.AsyncClient) -> dict[str, float] | None:
    """The gauges when nothing runs any more, or what they still are after a while; None: none."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        gauges = await read_gauges(http)
        if gauges is None or not any(gauges.values()) or time.monotonic() > end:
            return gauges
        await asyncio.sleep(0.2)


async def read_gauges(http: httpx.AsyncClient) -> dict[str, float] | None:
    """Sums of the gauges that must come back to zero; None without /metrics."""
    try:
        response = await http.get("/metrics")
    except httpx.HTTPError:
        return None
    if response.status_code != 200:
        return None
    found = dict.fromkeys((RUNNING, WAITING, USED), 0.0)
    for line in response.text.splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name in found:
            found[name] += float(value)
    return found
