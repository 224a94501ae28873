"""The thinking switch: thoughts and answer in their own fields, none where it is off."""

from collections.abc import Callable
from dataclasses import replace

from glm_portable.verify.endpoint.chat import Question, Said
from glm_portable.verify.endpoint.client import brief
from glm_portable.verify.endpoint.conversations import OFF, ON, THINKING_QUESTIONS, template_tags
from glm_portable.verify.endpoint.exam import Exam, Notes

_LEAK = (
    "tags of the template reach the client: the reasoning parser is another family's, as in "
    "vllm#33348 and zai-org/GLM-V#243"
)


def questions(switches: dict[str, bool]) -> list[Question]:
    return [Question("thinking", [message], switches=switches) for message in THINKING_QUESTIONS]


def on(exam: Exam, notes: Notes) -> None:
    """enable_thinking true: reasoning_content holds the thoughts, content the answer."""
    said = _each(exam, notes, exam.some(questions(ON)), _check_on)
    if not any(answer.reasoning for answer in said):
        notes.fail(
            f"{len(said)} questions with enable_thinking true",
            f"no reasoning_content in any answer, but {brief(said[0].content, 60)!r}",
            "thinking is off, or no reasoning parser is set: --reasoning-parser glm45",
        )


def off(exam: Exam, notes: Notes) -> None:
    """enable_thinking false: no thoughts, and the whole answer is content."""
    _each(exam, notes, exam.some(questions(OFF)), _check_off)


def cut_off(exam: Exam, notes: Notes) -> None:
    """Cut off inside its thoughts an answer is all reasoning, and says finish_reason length."""
    for question in exam.some(questions(ON)):
        short = replace(question, max_tokens=8)
        said = exam.ask(short)
        sent = f"{question.text!r} with thinking and max_tokens 8"
        if said.finish_reason != "length":
            notes.fail(sent, f"finish_reason {said.finish_reason!r}", "it was cut off: length")
        if said.content:
            notes.fail(
                sent,
                f"content {brief(said.content, 60)!r}",
                "unfinished thoughts are shown as the answer (vllm PR#31449)",
            )


def _each(
    exam: Exam,
    notes: Notes,
    asked: list[Question],
    check: Callable[[Notes, Question, str, Said], None],
) -> list[Said]:
    whole = []
    for question in asked:
        said = exam.once(question)
        whole.append(said)
        for how, answer in (("", said), (", streamed", exam.stream(question)[0])):
            check(notes, question, how, answer)
            _check_tags(notes, question, how, answer)
    return whole


def _check_tags(notes: Notes, question: Question, how: str, said: Said) -> None:
    for name, text in (("content", said.content), ("reasoning_content", said.reasoning)):
        tags = template_tags(text)
        if tags:
            notes.fail(f"{question.text!r}{how}", f"{tags[0]} in {name}", _LEAK)


def _check_on(notes: Notes, question: Question, how: str, said: Said) -> None:
    if said.finish_reason == "stop" and not said.content:
        notes.fail(
            f"{question.text!r} with thinking{how}",
            f"no content after reasoning {brief(said.reasoning, 60)!r}",
            "the answer is lost in the reasoning (vllm PR#31449, #31788, #33221)",
        )


def _check_off(notes: Notes, question: Question, how: str, said: Said) -> None:
    sent = f"{question.text!r} with enable_thinking false{how}"
    if said.reasoning:
        notes.fail(
            sent,
            f"reasoning_content {brief(said.reasoning, 60)!r}",
            "the switch is ignored, or the whole answer is taken for thoughts (vllm#31788)",
        )
    elif not said.content:
        notes.fail(sent, "no content", "a client shows an empty answer")
