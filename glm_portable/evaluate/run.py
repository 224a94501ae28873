"""Asks every question, several at a time, and gathers the results."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from glm_portable.errors import UsageError
from glm_portable.evaluate.ask import Ask
from glm_portable.evaluate.report import Report, Result
from glm_portable.evaluate.scoring import score
from glm_portable.tasks import SKILLS, Case, cases

MAX_TOKENS = 260
"""Enough for the longest right answer of the pocket model, thoughts included."""


def questions(samples_per_skill: int, skills: Sequence[str] | None, seed: int) -> list[Case]:
    """The held-out questions of each skill, with thinking and without. Raises UsageError."""
    unknown = sorted(set(skills or ()) - set(SKILLS))
    if unknown:
        raise UsageError(f"skills {', '.join(unknown)} are not among {', '.join(SKILLS)}.")
    return [
        case
        for name in skills or SKILLS
        for thinking in (True, False)
        if thinking or not SKILLS[name].thinking_only
        for case in cases(name, thinking, samples_per_skill, seed=seed)
    ]


def evaluate(
    ask: Ask,
    *,
    samples_per_skill: int = 40,
    skills: Sequence[str] | None = None,
    seed: int = 9000,
    concurrency: int = 16,
    max_tokens: int = MAX_TOKENS,
    track: Callable[[Iterable[Result], int], Iterable[Result]] | None = None,
) -> Report:
    """Score `ask` on the held-out tasks; all skills if None.

    track: wraps the iteration over the results of that many questions, to show progress.
    Raises UsageError on a number below 1 and on an unknown skill.
    """
    for name, value in (("samples", samples_per_skill), ("concurrency", concurrency)):
        if value < 1:
            raise UsageError(f"{name} is {value}; it has to be at least 1.")

    def result(case: Case) -> Result:
        answer = ask(case.messages, case.tools, case.thinking, max_tokens)
        return Result(case, answer, score(case, answer))

    asked = questions(samples_per_skill, skills, seed)
    pool = ThreadPoolExecutor(concurrency)
    try:
        results = pool.map(result, asked)
        return Report(tuple(track(results, len(asked)) if track else results))
    finally:
        pool.shutdown(cancel_futures=True)
