"""Accuracy alone and under load: tasks with known answers, asked one by one and many at once."""

import math
from concurrent.futures import ThreadPoolExecutor

from glm_portable.evaluate import Answer, score
from glm_portable.evaluate import Call as Called
from glm_portable.tasks import Case
from glm_portable.verify.endpoint.chat import Said
from glm_portable.verify.endpoint.conversations import examination, question
from glm_portable.verify.endpoint.exam import Exam, Notes, Skipped

ALPHA = 0.01
"""How often a server that is as good under load as alone is told otherwise."""


def right(case: Case, said: Said) -> bool:
    """The right calls, the right text, or at least an answer that ends in the right value.

    A model that was not trained on these tasks words its answers its own way.
    """
    calls = tuple(
        Called(call.name, call.parsed if call.parsed is not None else call.arguments)
        for call in said.calls
    )
    answer = Answer(said.content, said.reasoning, calls, said.finish_reason or "")
    if score(case, answer).correct:
        return True
    if "tool_calls" in case.expected or case.skill == "json":
        return False
    value = str(case.expected["content"]).rstrip(".").split()[-1]
    return said.finish_reason == "stop" and value.lower() in said.content.lower().split()[-3:]


def sign_test(worse: int, better: int) -> float:
    """The chance of `worse` or more of these coins falling that way (McNemar's exact test)."""
    count = worse + better
    return sum(math.comb(count, k) for k in range(worse, count + 1)) / 2.0**count


def accuracy(exam: Exam, notes: Notes) -> None:
    """The same tasks are answered as well with many at once as alone."""
    tasks = examination(exam.settings.samples, exam.settings.seed)
    alone = [right(case, exam.ask(question(case))) for case in tasks]
    with ThreadPoolExecutor(exam.settings.concurrency) as pool:
        loaded = list(pool.map(lambda case: right(case, exam.ask(question(case))), tasks))
    worse = sum(a and not b for a, b in zip(alone, loaded, strict=True))
    better = sum(b and not a for a, b in zip(alone, loaded, strict=True))
    chance = sign_test(worse, better)
    count = len(tasks)
    notes.measures |= {
        "tasks": count,
        "right_alone": sum(alone),
        f"right_at_{exam.settings.concurrency}": sum(loaded),
        "p": chance,
    }
    at_once = exam.settings.concurrency
    notes.remarks.append(
        f"of {count} right: {sum(alone)} alone, {sum(loaded)} with {at_once} at once"
    )
    if chance < ALPHA:
        notes.fail(
            f"{count} tasks one by one, and {exam.settings.concurrency} at once",
            f"{sum(alone)} right alone and {sum(loaded)} at once; {worse} turned wrong and "
            f"{better} right, which chance does with p = {chance:.2g}",
            "answers get worse with the batch, as in ATOM PR#273 and vllm#45562",
        )
    if not any(alone) and not any(loaded):
        raise Skipped(f"none of {count} tasks was answered rightly: the model cannot do them")
