"""The API around the model: streams, usage, stop strings, limits, and refusing nonsense."""

import json
from dataclasses import replace
from typing import Any

from glm_portable.verify.endpoint.chat import Question
from glm_portable.verify.endpoint.client import CHAT, Stream, brief, message_of
from glm_portable.verify.endpoint.conversations import OFF, ON, THINKING_QUESTIONS, user
from glm_portable.verify.endpoint.exam import Exam, Notes, Skipped

_PLAIN = [
    Question("plain", [message], switches=switches)
    for message in THINKING_QUESTIONS[:2]
    for switches in (ON, OFF)
]


def streamed(exam: Exam, notes: Notes) -> None:
    """The pieces of a streamed answer add up to the unstreamed one."""
    for question in _PLAIN[::-1][: 4 // exam.settings.every]:
        whole = exam.once(question)
        parts, stream = exam.stream(question)
        sent = f"{question.text!r} streamed"
        if parts.everything != whole.everything:
            notes.fail(
                sent,
                f"{brief(parts.text, 80)!r} instead of {brief(whole.text, 80)!r}",
                "streaming clients see another answer (vllm-mlx PR#725)",
            )
        if parts.finish_reason != whole.finish_reason:
            came = f"finish_reason {parts.finish_reason!r}, not {whole.finish_reason!r}"
            notes.fail(sent, came, "clients take a cut-off answer for a whole one")
        if not stream.done:
            notes.fail(sent, "no [DONE]", "a stream that stops is taken for a whole answer")
        if "\ufffd" in parts.text and "\ufffd" not in whole.text:
            notes.fail(sent, "U+FFFD", "characters are cut between pieces")


def usage(exam: Exam, notes: Notes) -> None:
    """The counts add up, and come with the stream that asks for them."""
    for question in _PLAIN[:2]:
        said = exam.once(question)
        parts, stream = exam.stream(question)
        total = said.count("prompt_tokens") + said.count("completion_tokens")
        if said.count("total_tokens") != total:
            came = f"total_tokens {said.usage['total_tokens']}, not {total}"
            notes.fail(f"{question.text!r}", came, "bills and benchmarks are computed from it")
        sent = f"{question.text!r} streamed with include_usage"
        if not parts.usage:
            notes.fail(sent, "no usage", "benchmarks and gateways count tokens by it")
        elif _counts(parts.usage) != _counts(said.usage):
            came = f"usage {_counts(parts.usage)}, not {_counts(said.usage)}"
            notes.fail(sent, came, "the same answer costs differently streamed")
        elif not _in_last_chunk(stream):
            notes.fail(sent, "usage not in the last chunk", "bench tools read it there")


def _counts(usage: Any) -> dict[str, Any]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: usage.get(name) for name in names}


def _in_last_chunk(stream: Stream) -> bool:
    return bool(stream.chunks) and bool(stream.chunks[-1].get("usage"))


def limits(exam: Exam, notes: Notes) -> None:
    """max_tokens ends the answer there, with finish_reason length."""
    for count in (1, 5):
        question = replace(_PLAIN[1], max_tokens=count)
        said = exam.ask(question)
        came = said.count("completion_tokens")
        sent = f"{question.text!r} with max_tokens {count}"
        if came != count:
            notes.fail(sent, f"completion_tokens {came}", "benchmarks and budgets rely on it")
        if said.finish_reason != "length":
            came_reason = f"finish_reason {said.finish_reason!r}"
            notes.fail(sent, came_reason, "clients take a cut-off answer for a whole one")


def stop_strings(exam: Exam, notes: Notes) -> None:
    """An answer ends before its stop string, which may begin inside a token."""
    question = _PLAIN[1]
    whole = exam.once(question)
    text = whole.content
    if len(text) < 6:
        raise Skipped(f"the answer {text!r} is too short to be stopped inside")
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    expected = text[: text.index(stop)]
    for how, said in (
        ("", exam.ask(question, stop=[stop])),
        (" streamed", exam.stream(question, stop=[stop])[0]),
    ):
        sent = f"{question.text!r}{how} with stop {stop!r}"
        if said.content.rstrip() != expected.rstrip():
            came = f"{brief(said.content, 80)!r}, not {brief(expected, 80)!r}"
            notes.fail(sent, came, "agents parse up to their stop string")
        if said.finish_reason != "stop":
            notes.fail(sent, f"finish_reason {said.finish_reason!r}", "it was stopped")


_HELLO = [user("Hello")]
_NONSENSE: dict[str, Any] = {
    "no messages": {"messages": []},
    "messages that are a string": {"messages": "Hello"},
    "a message without a role": {"messages": [{"content": "Hello"}]},
    "an unknown role": {"messages": [{"role": "wizard", "content": "Hello"}]},
    "temperature 'hot'": {"messages": _HELLO, "temperature": "hot"},
    "temperature -1": {"messages": _HELLO, "temperature": -1},
    "top_p 7": {"messages": _HELLO, "top_p": 7},
    "max_tokens -5": {"messages": _HELLO, "max_tokens": -5},
    "max_tokens 'many'": {"messages": _HELLO, "max_tokens": "many"},
    "tools that are no list": {"messages": _HELLO, "tools": "get_weather"},
    "a tool without a name": {"messages": _HELLO, "tools": [{"type": "function", "function": {}}]},
}


def nonsense(exam: Exam, notes: Notes) -> None:
    """What cannot be meant is refused with 4xx and a reason, not answered and not a crash."""
    sent: dict[str, bytes] = {
        name: json.dumps({"model": exam.model, "max_tokens": 4, **fields}).encode()
        for name, fields in _NONSENSE.items()
    }
    sent["a body that is no JSON"] = b'{"messages": ['
    sent["a body that is a list"] = b"[]"
    for name, content in sent.items():
        status, text = exam.client.status(CHAT, content)
        if status == 200:
            notes.fail(name, f"200 and {brief(text, 80)!r}", "a client's mistake goes unnoticed")
        elif status >= 500:
            came = f"{status} and {brief(message_of(text), 80)!r}"
            notes.fail(name, came, "clients retry 5xx, and routers take the server out of service")
    notes.measures["requests"] = len(sent)
    said = exam.ask(_PLAIN[1])
    if not said.content:
        notes.fail("a plain question after the nonsense", "no content", "the server was damaged")
