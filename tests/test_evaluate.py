"""Scoring with scripted answers, the report, and asking over HTTP."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from glm_portable.errors import UsageError
from glm_portable.evaluate import Answer, Call, Endpoint, evaluate, score
from glm_portable.evaluate.command import run_evaluate
from glm_portable.evaluate.run import questions
from glm_portable.tasks import SKILLS, Case, Message, Tool, cases

CALL = {"city": "Oslo", "nights": 3, "breakfast": True, "price": 2.5}


def right(case: Case) -> Answer:
    """The expected answer, thoughts included."""
    expected = case.expected
    finish = "tool_calls" if "tool_calls" in expected else "stop"
    return Answer.from_message(expected, finish)


def case(expected: Message, *, skill: str = "copy", thinking: bool = False, **more: Any) -> Case:
    return Case(skill, thinking, [{"role": "user", "content": "?"}], None, expected, **more)


def call_case(*arguments: dict[str, Any]) -> Case:
    calls = [
        {"function": {"name": f"tool{i}", "arguments": json.dumps(args)}}
        for i, args in enumerate(arguments)
    ]
    return case({"content": "", "tool_calls": calls}, skill="tool_call")


def called(*arguments: Any, finish: str = "tool_calls") -> Answer:
    calls = tuple(Call(f"tool{i}", args) for i, args in enumerate(arguments))
    return Answer("", tool_calls=calls, finish_reason=finish)


@pytest.mark.parametrize("name", SKILLS)
def test_the_expected_answer_is_right(name: str) -> None:
    for thinking in {True, SKILLS[name].thinking_only}:
        for asked in cases(name, thinking, 5):
            judged = score(asked, right(asked))
            assert judged.correct and judged.obeyed
            assert judged.named == (True if SKILLS[name].calls else None)


@pytest.mark.parametrize("name", SKILLS)
def test_another_answer_is_wrong(name: str) -> None:
    for asked in cases(name, True, 5):
        expected = right(asked)
        calls = tuple(replace(call, name="no") for call in expected.tool_calls)
        judged = score(asked, replace(expected, content="no", tool_calls=calls))
        assert not judged.correct and judged.obeyed


@pytest.mark.parametrize(
    "said",
    [
        CALL | {"city": "oslo"},
        CALL | {"nights": "3"},
        CALL | {"nights": True},
        CALL | {"breakfast": 1},
        CALL | {"breakfast": "true"},
        CALL | {"price": "2.5"},
        CALL | {"extra": 1},
        {key: CALL[key] for key in CALL if key != "nights"},
        json.dumps(CALL)[:-1],
        {},
    ],
)
def test_one_wrong_argument_is_wrong(said: Any) -> None:
    judged = score(call_case(CALL), called(said))
    assert not judged.correct and judged.named


def test_the_order_of_arguments_and_the_spelling_of_a_number_do_not_matter() -> None:
    said = dict(reversed((CALL | {"nights": 3.0}).items()))
    assert score(call_case(CALL), called(said)).correct


def test_nested_arguments_are_compared_by_type_too() -> None:
    wanted = call_case({"options": {"tags": ["a", "1"]}})
    assert score(wanted, called({"options": {"tags": ["a", "1"]}})).correct
    for tags in (["a", 1], ["1", "a"], ["a"], "a"):
        assert not score(wanted, called({"options": {"tags": tags}})).correct


def test_calls_are_right_in_number_name_and_order() -> None:
    wanted = call_case({"a": 1}, {"a": 2})
    assert score(wanted, called({"a": 1}, {"a": 2})).correct
    swapped = Answer("", tool_calls=(Call("tool1", {"a": 2}), Call("tool0", {"a": 1})))
    for answer in (called({"a": 1}), called({"a": 1}, {"a": 2}, {"a": 3}), swapped):
        assert not score(wanted, answer).correct and not score(wanted, answer).named
    assert not score(wanted, called({"a": 2}, {"a": 1})).correct


def test_an_answer_that_did_not_end_is_wrong() -> None:
    text = case({"content": "yes"})
    assert score(text, Answer("yes")).correct
    assert not score(text, Answer("yes", finish_reason="length")).correct
    assert not score(call_case(CALL), called(CALL, finish="length")).correct


def test_text_has_to_be_equal_but_for_the_space_around_it() -> None:
    wanted = case({"content": "yes"})
    assert score(wanted, Answer("\nyes ")).correct
    for said in ("Yes", "yes.", "", "yes yes"):
        assert not score(wanted, Answer(said)).correct
    assert not score(wanted, Answer("yes", tool_calls=(Call("tool0", {}),))).correct


def test_json_is_compared_as_json() -> None:
    wanted = case({"content": '{"age": 3, "ok": true}'}, skill="json")
    assert score(wanted, Answer('{ "ok":true,"age":3 }')).correct
    for said in ('{"age": "3", "ok": true}', '{"age": 3, "ok": 1}', '{"age": 3', "{}"):
        assert not score(wanted, Answer(said)).correct


def test_an_answer_from_results_may_be_worded_freely() -> None:
    wanted = case({"content": "It is 12 and sunny."}, skill="tool_answer", results=("12", "sunny"))
    assert score(wanted, Answer("Sunny? Yes, sunny: 12.")).correct
    assert not score(wanted, Answer("It is 12.")).correct


@pytest.mark.parametrize(
    "thinking, answer, obeyed",
    [
        (True, Answer("yes", "because"), True),
        (True, Answer("yes"), False),
        (True, Answer("", "on and on", finish_reason="length"), False),
        (True, Answer("why</think>yes", "because"), False),
        (True, Answer("", "because", (Call("tool0", {}),), "tool_calls"), True),
        (False, Answer("yes"), True),
        (False, Answer("yes", "because"), False),
        (False, Answer("<think>because</think>yes"), False),
    ],
)
def test_the_thinking_switch(thinking: bool, answer: Answer, obeyed: bool) -> None:
    judged = score(case({"content": "yes"}, thinking=thinking), answer)
    assert judged.obeyed == obeyed
    assert judged.correct == (answer.content == "yes")


class Scripted:
    """Answers every held-out question rightly, and spoils those that `wrong` picks."""

    def __init__(self, wrong: Callable[[Case], bool], samples: int) -> None:
        asked = questions(samples, ["add", "mul", "tool_call"], 9000)
        self.answers = {self._key(c.messages, c.thinking): (c, right(c)) for c in asked}
        self.wrong = wrong

    def _key(self, messages: Sequence[Message], thinking: bool) -> str:
        return json.dumps([messages, thinking])

    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        thinking: bool,
        max_tokens: int,
    ) -> Answer:
        asked, answer = self.answers[self._key(messages, thinking)]
        assert tools == asked.tools
        return Answer("no", answer.reasoning) if self.wrong(asked) else answer


def test_the_report_counts_each_skill_and_mode() -> None:
    ask = Scripted(lambda asked: asked.skill == "add" and not asked.thinking, 6)
    report = evaluate(ask, samples_per_skill=6, skills=["add", "mul", "tool_call"])
    add_on, add_off = report.summary(True, "add"), report.summary(False, "add")
    assert add_on and (add_on.count, add_on.correct, add_on.obeyed) == (6, 1.0, 1.0)
    assert add_off and (add_off.correct, add_off.obeyed, add_off.named) == (0.0, 1.0, None)
    assert report.summary(False, "mul") is None
    overall = report.summary(False)
    assert overall and overall.count == 12 and overall.correct == 0.5
    calls = report.summary(True, "tool_call")
    assert calls and calls.named == 1.0
    assert [result.case.skill for result in report.wrong()] == ["add"] * 6


def test_the_command_prints_the_table_and_writes_the_json(tmp_path: Path) -> None:
    ask = Scripted(lambda asked: asked.skill == "mul", 2)
    out, path = StringIO(), tmp_path / "report.json"
    run_evaluate(
        ask,
        samples=2,
        skills="mul,tool_call",
        show=1,
        json_path=path,
        console=Console(file=out, width=160),
    )
    printed = out.getvalue()
    assert "6 held-out questions" in printed
    mul, tool_call, overall = (
        [row.split("│")[1:-1] for row in printed.splitlines() if row.startswith(f"│ {name} ")][0]
        for name in ("mul", "tool_call", "all")
    )
    assert [cell.strip() for cell in mul] == ["mul", "0.0 %", "100.0 %", "", "", "", ""]
    assert [cell.strip() for cell in tool_call][1:4] == ["100.0 %"] * 3
    assert overall[1].strip() == "50.0 %" and overall[4].strip() == "100.0 %"
    assert "said:   'no'" in printed and printed.count("wanted:") == 1
    saved = json.loads(path.read_text())
    assert saved["skills"]["mul"]["thinking"]["correct"] == 0.0
    assert saved["all"]["off"]["count"] == 2
    assert len(saved["wrong"]) == 2 and saved["wrong"][0]["answer"]["content"] == "no"


def test_an_unknown_skill_is_refused() -> None:
    with pytest.raises(UsageError, match="skills dance are not among tool_call"):
        evaluate(Scripted(lambda _: False, 1), skills=["add", "dance"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 1, "concurrency": 0}, "concurrency is 0"),
        ({"samples": 1, "json_path": Path("nowhere/at/all.json")}, "nowhere/at is not a folder"),
    ],
)
def test_bad_options_are_refused_before_anything_is_asked(
    options: dict[str, Any], message: str
) -> None:
    def refuse(asked: Case) -> bool:
        raise AssertionError("asked")

    with pytest.raises(UsageError, match=message):
        run_evaluate(Scripted(refuse, 1), skills="add", **options)


def endpoint(handle: Callable[[httpx.Request], httpx.Response], **more: Any) -> Endpoint:
    return Endpoint("http://127.0.0.1:1/v1/", transport=httpx.MockTransport(handle), **more)


def test_the_endpoint_sends_the_question_and_reads_the_answer() -> None:
    seen: list[httpx.Request] = []
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}, "id": "x", "type": "function"}

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "pocket"}]})
        message = {"content": None, "reasoning_content": "why", "tool_calls": [call]}
        choice = {"message": message, "finish_reason": "tool_calls"}
        return httpx.Response(200, json={"choices": [choice]})

    asked = cases("tool_call", False, 1)[0]
    with endpoint(handle, api_key="secret") as ask:
        answer = ask(asked.messages, asked.tools, False, 99)
    assert answer == Answer("", "why", (Call("f", {"a": 1}),), "tool_calls")
    assert [request.headers["authorization"] for request in seen] == ["Bearer secret"] * 2
    body = json.loads(seen[1].content)
    assert seen[1].url.path == "/v1/chat/completions"
    assert body == {
        "model": "pocket",
        "messages": asked.messages,
        "tools": asked.tools,
        "temperature": 0,
        "max_tokens": 99,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_a_server_that_refuses_is_named_with_its_words() -> None:
    with pytest.raises(UsageError, match="/v1/models answered 401: wrong key"):
        endpoint(lambda _: httpx.Response(401, text="wrong key"))


def test_a_server_that_is_not_there_is_named() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1/v1/models did not answer \(refused\)"):
        endpoint(refuse)
