"""Tool calls: complete, of the declared types, the same streamed and not, and as written."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from glm_portable.serve.parsing import parse
from glm_portable.verify.endpoint.chat import Call, Question, Said
from glm_portable.verify.endpoint.client import COMPLETIONS, Broken, Refused, brief
from glm_portable.verify.endpoint.conversations import TOOL_QUESTIONS, template_tags
from glm_portable.verify.endpoint.exam import Exam, Notes, Skipped
from glm_portable.verify.endpoint.reference import Recorded

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def shape(exam: Exam, notes: Notes) -> None:
    """Names are whole, arguments are JSON of the declared types, finish_reason says tool_calls."""
    calls = 0
    for question in exam.some(TOOL_QUESTIONS):
        said = exam.once(question)
        calls += len(said.calls)
        fail = partial(notes.fail, f"{question.text!r}")
        for tag in template_tags(said.content):
            fail(
                f"{tag} in content", "the tool parser is another family's: glm45, or glm47 for 4.7"
            )
        if said.calls and said.finish_reason != "tool_calls":
            fail(
                f"a call with finish_reason {said.finish_reason!r}",
                "agents stop instead of calling",
            )
        ids = [call.id for call in said.calls]
        if len(set(ids)) < len(ids) or "" in ids:
            fail(f"call ids {ids}", "results cannot be matched to their calls")
        for call in said.calls:
            for came, why in _faults(call, question):
                fail(came, why)
    notes.measures["calls"] = calls
    if not calls:
        notes.fail(
            "questions that need a tool",
            "no call at all",
            "no tool parser is set (--enable-auto-tool-choice --tool-call-parser glm45), or tools "
            "do not reach the template",
        )


def _faults(call: Call, question: Question) -> list[tuple[str, str]]:
    """What is wrong with a call, and why it matters."""
    declared = {tool["function"]["name"]: tool["function"] for tool in question.tools or ()}
    if call.name not in declared:
        return [
            (
                f"a call of {call.name!r}",
                "no such tool was declared; names came cut off in vllm PR#45915",
            )
        ]
    arguments = call.parsed
    if not isinstance(arguments, dict):
        return [(f"arguments {brief(call.arguments)!r}", "they are no JSON object")]
    schema = declared[call.name]["parameters"]
    missing = [key for key in schema["required"] if key not in arguments]
    found = [(f"no {key!r} in {call.arguments}", "it is required") for key in missing]
    for key, value in arguments.items():
        kind = schema["properties"].get(key, {}).get("type")
        if kind is not None and not _is(value, kind):
            why = f"declared as {kind}; typed wrongly as in sglang#35564, clients refuse the call"
            found.append((f"{key} = {value!r}", why))
    return found


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS[kind])


def streamed(exam: Exam, notes: Notes) -> None:
    """A streamed call adds up to the unstreamed one, arguments character by character."""
    for question in exam.some(TOOL_QUESTIONS):
        whole = exam.once(question)
        parts, stream = exam.stream(question)
        sent = f"{question.text!r} streamed"
        if _named(parts) != _named(whole):
            notes.fail(
                sent,
                f"{_shown(parts)} instead of {_shown(whole)}",
                "streaming clients get another call; lost and doubled arguments are vllm PR#39253, "
                "PR#35208 and sglang#35564",
            )
        if parts.finish_reason != whole.finish_reason:
            came = f"finish_reason {parts.finish_reason!r}, not {whole.finish_reason!r}"
            notes.fail(sent, came, "agents decide by it whether to call")
        if not stream.done:
            notes.fail(sent, "no [DONE]", "a stream that stops is taken for a whole answer")


def _named(said: Said) -> list[tuple[str, Any]]:
    """Equal JSON counts as equal: servers differ in how they space it."""
    return [
        (call.name, call.arguments if call.parsed is None else call.parsed) for call in said.calls
    ]


def _shown(said: Said) -> str:
    calls = ", ".join(f"{call.name}({brief(call.arguments, 80)})" for call in said.calls)
    return calls or "no call"


def as_written(exam: Exam, notes: Notes) -> None:
    """What the parser makes of the model's text is what the text says, whitespace included.

    The text comes from /v1/completions on the same prompt; without that endpoint, calls are
    compared with the reference's.
    """
    recorded = [r for r in exam.reference.recorded if r.question.tools] if exam.reference else []
    if not recorded:
        raise Skipped(
            "the prompts are not known: make a file with glm-portable verify endpoint-reference"
        )
    try:
        _compare_with_text(exam, notes, recorded)
    except Refused as refused:
        notes.remarks.append(f"/v1/completions answered {refused}; compared with the reference")
        _compare_with_reference(exam, notes, recorded)


def _compare_with_text(exam: Exam, notes: Notes, recorded: list[Recorded]) -> None:
    compared = 0
    for record in recorded:
        question = record.question
        text = _complete(exam, record)
        wrote = parse(
            text,
            question.tools,
            starts_in_reasoning=exam.family == "glm47" and question.thinking,
            thinking=question.thinking,
        )
        said = exam.once(question)
        if (wrote.reasoning or "").strip() != said.reasoning.strip():
            continue  # another answer, which determinism is the check for
        compared += 1
        written = Said(calls=tuple(Call(c.name, c.arguments) for c in wrote.tool_calls))
        _compare(notes, question, written, said, f"the model wrote {brief(text[-200:])!r}")
    notes.measures["compared"] = compared


def _complete(exam: Exam, record: Recorded) -> str:
    body = {
        "model": exam.model,
        "prompt": list(record.prompt_ids),
        "max_tokens": record.question.max_tokens,
        "temperature": 0,
    }
    choices = exam.client.post(COMPLETIONS, body).get("choices")
    text = choices[0].get("text") if isinstance(choices, list) and choices else None
    if not isinstance(text, str):
        raise Broken(f"{COMPLETIONS} answered 200 without a text")
    return text


def _compare_with_reference(exam: Exam, notes: Notes, recorded: list[Recorded]) -> None:
    """Models may differ; a call that differs from the reference's in form alone was changed."""
    for record in recorded:
        wrote = Said(calls=tuple(Call(name, arguments) for name, arguments in record.calls))
        said = exam.once(record.question)
        if _loose(wrote) == _loose(said):
            _compare(notes, record.question, wrote, said, f"the reference called {_shown(wrote)}")


def _compare(notes: Notes, question: Question, wrote: Said, said: Said, source: str) -> None:
    if _named(wrote) == _named(said):
        return
    stripped = _loose(wrote) == _loose(said)
    why = (
        "values are stripped or change their type, so files and diffs come out wrong; xLLM's "
        "glm47 parser trims values, sglang PR#20543 stopped it"
        if stripped
        else "calls are dropped or changed on the way (vllm PR#45915)"
    )
    notes.fail(f"{question.text!r}", f"{_shown(said)}, but {source}", why)


def _loose(said: Said) -> list[tuple[str, Any]]:
    return [(name, _bare(arguments)) for name, arguments in _named(said)]


def _bare(value: Any) -> Any:
    """A value without its type and the whitespace around it."""
    if isinstance(value, Mapping):
        return {key: _bare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return str(value).strip().lower()


def choice(exam: Exam, notes: Notes) -> None:
    """tool_choice none forbids calls; a named tool is called, whatever was asked."""
    question = TOOL_QUESTIONS[1]
    said = exam.ask(question, tool_choice="none")
    if said.calls:
        came = f"{_shown(said)} with tool_choice none"
        notes.fail(f"{question.text!r}", came, "the client cannot switch tools off")
    hello = replace(question, messages=[{"role": "user", "content": "Hello!"}])
    name = "get_weather"
    named = {"type": "function", "function": {"name": name}}
    said = exam.ask(hello, tool_choice=named)
    if [call.name for call in said.calls] != [name]:
        came = f"{_shown(said)} with tool_choice {name}"
        notes.fail(f"{hello.text!r}", came, "frameworks read structured output from the named call")
