"""Whether an answer is right, and whether it thought when it should and only then."""

import json
from dataclasses import dataclass
from typing import Any

from glm_portable.evaluate.ask import Answer, Call
from glm_portable.tasks import Case


@dataclass(frozen=True)
class Score:
    """correct: the right answer, ended properly. obeyed: the thinking switch was obeyed.

    named: the right tools were called in the right order, whatever their arguments; None where no
    tool was to be called.
    """

    correct: bool
    obeyed: bool
    named: bool | None = None


def score(case: Case, answer: Answer) -> Score:
    """Judge an answer exactly: no partial credit, and none for an answer that was cut off.

    Tool calls: the same names and the same arguments of the same JSON types. Answers from tool
    results: every value named, in any wording. JSON: equal once parsed. All else: equal text.
    """
    obeyed = _obeyed(case.thinking, answer)
    if "tool_calls" in case.expected:
        wanted = [_expected_call(call) for call in case.expected["tool_calls"]]
        named = [c.name for c in answer.tool_calls] == [c.name for c in wanted]
        right = named and _same(
            [c.arguments for c in answer.tool_calls], [c.arguments for c in wanted]
        )
        return Score(right and answer.finish_reason == "tool_calls", obeyed, named)
    ended = answer.finish_reason == "stop" and not answer.tool_calls
    return Score(ended and _says(case, answer.content.strip()), obeyed)


def _obeyed(thinking: bool, answer: Answer) -> bool:
    if "<think>" in answer.content or "</think>" in answer.content:
        return False
    if not thinking:
        return not answer.reasoning
    return bool(answer.reasoning and (answer.content or answer.tool_calls))


def _expected_call(call: dict[str, Any]) -> Call:
    function = call["function"]
    return Call(function["name"], json.loads(function["arguments"]))


def _says(case: Case, text: str) -> bool:
    expected = str(case.expected["content"]).strip()
    if case.results:
        return all(value in text for value in case.results)
    if case.skill != "json":
        return text == expected
    try:
        return _same(json.loads(text), json.loads(expected))
    except json.JSONDecodeError:
        return False


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but neither is true (in Python all three are equal)."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)
