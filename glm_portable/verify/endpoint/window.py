"""Long prompts: read to the end, counted, refused where they do not fit, and the same twice."""

from dataclasses import replace

from glm_portable.verify.endpoint.chat import Question
from glm_portable.verify.endpoint.client import CHAT, Broken, Refused, brief
from glm_portable.verify.endpoint.conversations import OFF, user
from glm_portable.verify.endpoint.exam import Exam, Notes, Skipped

_NAMES = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
_ROOM = 48
"""Tokens left for the answer."""
_NEEDLE, _CODE = "Zora", 4711
_READS = 1200
"""Tokens up to which the pocket model finds a fact."""


def fact(index: int) -> str:
    return f"The code of {_NAMES[index % 10]}{index} is {1000 + index * 37 % 9000}."


def haystack(facts: int, needle: int) -> Question:
    """A question about one fact among many, which is number `needle`."""
    lines = [fact(i) for i in range(facts)]
    lines.insert(needle, f"The code of {_NEEDLE} is {_CODE}.")
    text = f"{' '.join(lines)}\nWhat is the code of {_NEEDLE}?"
    return Question("needle", [user(text)], switches=OFF, max_tokens=_ROOM)


def _tokens(exam: Exam, facts: int) -> int:
    return exam.once(replace(haystack(facts, 0), max_tokens=1)).count("prompt_tokens")


def _facts_for(exam: Exam, tokens: int) -> int:
    """How many facts fill a prompt of about so many tokens, but not more."""
    few, more = _tokens(exam, 10), _tokens(exam, 30)
    each = (more - few) / 20
    if each <= 0:
        raise Broken(f"30 facts count {more} prompt tokens, 10 facts {few}")
    return max(1, int((tokens - few) / (each * 1.1)) + 10)


def _target(exam: Exam) -> int:
    if exam.window is None:
        raise Skipped("the server's model list has no max_model_len, so its window is not known")
    return min(exam.window - _ROOM, exam.settings.longest)


def near(exam: Exam, notes: Notes) -> None:
    """A prompt that fills the window, or --longest tokens, is answered, and the same twice."""
    target = _target(exam)
    facts = _facts_for(exam, target)
    question = haystack(facts, facts // 2)
    first, second = exam.ask(question), exam.ask(question)
    count = first.count("prompt_tokens")
    notes.measures |= {"prompt_tokens": count, "window": float(exam.window or 0)}
    sent = f"a prompt of {count} tokens"
    notes.remarks.append(f"{count} tokens")
    if first.everything != second.everything:
        notes.fail(
            f"{sent} twice at temperature 0",
            f"{brief(first.text, 60)!r} and {brief(second.text, 60)!r}",
            "long prompts show what short ones hide: aiter#5108 is stable up to 13,600 tokens",
        )
    if not first.text:
        notes.fail(sent, "an empty answer", "the end of the prompt, and the question, was cut off")


def needle(exam: Exam, notes: Notes) -> None:
    """A fact in the middle of a long prompt is found."""
    target = _target(exam)
    pocket = exam.reference is not None and exam.reference.name == "glm-pocket"
    facts = _facts_for(exam, min(target, _READS) if pocket else target)
    wrong = []
    for depth in (0.1, 0.5, 0.9):
        said = exam.ask(haystack(facts, int(depth * facts)))
        if str(_CODE) not in said.content:
            wrong.append((depth, said.content))
        notes.measures["prompt_tokens"] = said.count("prompt_tokens")
    notes.measures["missed"] = len(wrong)
    if len(wrong) > 1:
        depth, content = wrong[0]
        notes.fail(
            f"a fact at three depths of {facts} facts",
            f"{len(wrong)} missed, such as at {depth:.0%}: {brief(content, 60)!r}",
            "attention or its cache is wrong far back: aiter#5049 scored 1 of 9 past 25,000 tokens",
        )


def beyond(exam: Exam, notes: Notes) -> None:
    """A prompt that does not fit is refused with 400, not cut without a word."""
    window = exam.window
    if window is None:
        _target(exam)
    elif window > exam.settings.longest:
        raise Skipped(
            f"the window of {window} tokens is more than --longest {exam.settings.longest}"
        )
    else:
        facts = int(_facts_for(exam, window) * 1.3) + 10
        question = haystack(facts, 0)
        try:
            said = exam.ask(question)
        except Refused as refused:
            notes.remarks.append(f"{CHAT} answered {refused}")
        else:
            came = f"200 with {said.count('prompt_tokens')} prompt tokens of {facts} facts"
            notes.fail("a prompt longer than the window", came, "the rest was cut off unseen")
