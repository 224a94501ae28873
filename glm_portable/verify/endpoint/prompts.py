"""Token counts: what the server's template and tokenizer make of known conversations."""

from dataclasses import replace

from glm_portable.verify.endpoint.chat import Question
from glm_portable.verify.endpoint.client import Broken, Refused
from glm_portable.verify.endpoint.conversations import COUNTED, OFF, user
from glm_portable.verify.endpoint.exam import Exam, Notes, Skipped

NO_REFERENCE = (
    "nothing to compare with: name the served model's folder or id, or a file of "
    "endpoint-reference, with --reference"
)
_WHY = (
    "another template or tokenizer than the model was trained with: it degrades every answer "
    "without an error, as in vllm PR#36410 and zai-org/GLM-V#243"
)


def counted(name: str) -> Question:
    return next(question for question in COUNTED if question.name == name)


def conversations(exam: Exam, notes: Notes) -> None:
    """usage.prompt_tokens is exactly what the model's own template and tokenizer give."""
    if exam.reference is None:
        raise Skipped(NO_REFERENCE)
    known = [q for q in COUNTED if q.name in exam.reference.prompt_tokens]
    refused, wrong = [], []
    for question in known:
        expected = exam.reference.prompt_tokens[question.name]
        try:
            came = exam.ask(replace(question, max_tokens=1)).count("prompt_tokens")
        except Refused as refusal:
            refused.append(f"{question.name!r} with {refusal}")
        else:
            wrong += [f"{question.name!r} {came}, not {expected}"] if came != expected else []
    sent = f"{len(known)} known conversations"
    if refused:
        notes.fail(sent, f"refused {'; '.join(refused)}", "clients send such histories")
    if wrong:
        notes.fail(sent, f"wrong prompt_tokens: {'; '.join(wrong)}", _WHY)
    if len(refused) == len(known):
        raise Broken("every known conversation was refused")
    notes.measures["conversations"] = len(known)
    own = f"template and tokenizer of {exam.reference.name}"
    notes.remarks.append(f"expected by the {exam.reference.about.get('prompt counts', own)}")


def thinking_switch(exam: Exam, notes: Notes) -> None:
    """Switching thinking off costs 4 tokens in GLM-4.5 and 4.6, and none in 4.7.

    4.5: /nothink, a newline, <think> and </think>. 4.7: </think> instead of <think>.
    """
    if exam.family is None:
        raise Skipped(f"the family of the model is not known; {NO_REFERENCE}")
    question = replace(counted("question"), max_tokens=1)
    on = exam.ask(question).count("prompt_tokens")
    off = exam.ask(replace(question, switches=OFF)).count("prompt_tokens")
    expected = 4 if exam.family == "glm45" else 0
    if off - on != expected:
        notes.fail(
            "enable_thinking false beside the same question without it",
            f"{off - on} more prompt tokens, not {expected}",
            "the switch does not reach the template, or it is another family's",
        )


def system_prompt(exam: Exam, notes: Notes) -> None:
    """A longer system prompt is a longer prompt: what is sent is read."""
    lengths = []
    for text in ("Be brief.", "Be brief. " + "Be brief. " * 20):
        messages = [{"role": "system", "content": text}, user("Hello")]
        question = Question("system", messages, max_tokens=1)
        lengths.append(exam.ask(question).count("prompt_tokens"))
    if lengths[1] < lengths[0] + 20:
        notes.fail(
            "a system prompt 20 sentences longer",
            f"{lengths[1]} prompt tokens instead of {lengths[0]}",
            "the system prompt is cut or dropped",
        )
