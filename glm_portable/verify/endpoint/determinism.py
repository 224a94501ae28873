"""The same request, the same answer: again, and with other requests beside it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from glm_portable.verify.endpoint.chat import Question, Said
from glm_portable.verify.endpoint.client import Refused, brief
from glm_portable.verify.endpoint.conversations import probes
from glm_portable.verify.endpoint.exam import Exam, Notes

MARGIN = 1.0
"""Nats between the two likeliest tokens. A batch of another size rounds sums differently, which
turns a choice between near-equals; to turn one of this margin takes an error."""
UNEXPLAINED = 0.05
"""Share of answers that may part at a wider margin: a router can flip far from the logits."""


def repeated(exam: Exam, notes: Notes) -> None:
    """At temperature 0 one request after the other gets the same answer."""
    repeats, differing = exam.settings.repeats, 0
    for question in exam.some(probes())[::4]:
        exam.ask(question)  # fills the prefix cache: from here on all take the same path
        said = [exam.ask(question) for _ in range(repeats)]
        different = {answer.everything for answer in said}
        if len(different) > 1:
            differing += 1
            first, second = (brief(" ".join(map(str, text)), 60) for text in list(different)[:2])
            notes.fail(
                f"{question.text!r} {repeats} times at temperature 0, alone",
                f"{len(different)} answers, such as {first!r} and {second!r}",
                "the kernels add in no fixed order or read what they should not, as in aiter#5108",
            )
    notes.measures |= {"repeats": repeats, "differing": differing}


def beside_others(exam: Exam, notes: Notes) -> None:
    """What an answer is must not depend on its neighbours, but where two tokens are near equal."""
    questions = exam.some(probes())
    extra = {"logprobs": True, "top_logprobs": 2} if _has_logprobs(exam, questions[0]) else {}
    alone = [exam.once(question, **extra) for question in questions]
    rounds = max(1, exam.settings.concurrency // len(questions))
    crowd = questions * rounds
    with ThreadPoolExecutor(exam.settings.concurrency) as pool:
        loaded = list(pool.map(lambda question: exam.ask(question, **extra), crowd))
    parted = [
        (question, first_difference(one, many))
        for question, one, many in zip(crowd, alone * rounds, loaded, strict=True)
        if one.everything != many.everything
    ]
    wide = [
        (question, margin) for question, margin in parted if margin is not None and margin > MARGIN
    ]
    notes.measures |= {
        "answers": len(crowd),
        "differing": len(parted),
        "unexplained": len(wide),
    }
    notes.remarks.append(f"{len(parted)} of {len(crowd)} answers differ from those given alone")
    if len(wide) > UNEXPLAINED * len(crowd):
        question, margin = max(wide, key=lambda pair: pair[1])
        notes.fail(
            f"{len(crowd)} questions, {exam.settings.concurrency} at once, at temperature 0",
            f"{len(wide)} answers part from those given alone where one token was clearly ahead, "
            f"such as {question.text!r} at a margin of {margin:.2f} nats",
            "requests disturb each other: pages or masks of a batch are mixed up (vllm#46262, "
            "vllm#23138)",
        )
    if parted and not extra:
        notes.remarks.append(
            "without log probabilities from the server it is not known whether rounding explains it"
        )


def _has_logprobs(exam: Exam, question: Question) -> bool:
    try:
        return bool(exam.ask(question, logprobs=True, top_logprobs=2).tokens)
    except Refused:
        return False


def first_difference(alone: Said, loaded: Said) -> float | None:
    """How far the two likeliest tokens were apart, alone, where the answers part; None: unknown."""
    pairs: Sequence[tuple[str, str]] = [
        (a.text, b.text) for a, b in zip(alone.tokens, loaded.tokens, strict=False)
    ]
    for index, (a, b) in enumerate(pairs):
        if a != b:
            ahead = sorted(alone.tokens[index].top.values(), reverse=True)
            return ahead[0] - ahead[1] if len(ahead) > 1 else None
    return None
