"""Judging answers, and what chance explains."""

import json
from typing import Any

import pytest

from glm_portable.tasks import cases
from glm_portable.verify.endpoint.chat import Call, Said
from glm_portable.verify.endpoint.conversations import SKILLS, examination
from glm_portable.verify.endpoint.load import right, sign_test


def answered(expected: Any) -> Said:
    calls = [c["function"] for c in expected.get("tool_calls", ())]
    made = tuple(Call(c["name"], c["arguments"]) for c in calls)
    thoughts = expected.get("reasoning_content") or ""
    return Said(expected["content"], thoughts, made, "tool_calls" if made else "stop")


def test_expected_answers_are_right_and_others_are_not() -> None:
    for case in examination(32, 5):
        said = answered(case.expected)
        assert right(case, said), case
        assert not right(case, Said("I cannot tell.", finish_reason="stop"))


def test_the_value_may_be_worded_otherwise_but_not_cut_off() -> None:
    [case] = cases("add", False, 1)
    value = case.expected["content"].split()[-1]
    assert right(case, Said(f"The answer is {value}", finish_reason="stop"))
    assert not right(case, Said(f"The answer is {value}", finish_reason="length"))
    assert not right(case, Said(f"It is {value} or perhaps a bit more", finish_reason="stop"))


def test_a_call_has_its_types() -> None:
    case = next(c for c in cases("tool_call", False, 40) if '": 1' in json.dumps(c.expected))
    function = case.expected["tool_calls"][0]["function"]
    quoted = {key: str(value) for key, value in json.loads(function["arguments"]).items()}
    call = Call(function["name"], json.dumps(quoted))
    assert not right(case, Said(calls=(call,), finish_reason="tool_calls"))


def test_tasks_are_of_all_skills_and_modes() -> None:
    drawn = examination(48, 1)
    assert len(drawn) == 48
    assert {(c.skill, c.thinking) for c in drawn} == {(s, t) for s in SKILLS for t in (True, False)}
    assert examination(48, 1) == drawn != examination(48, 2)


@pytest.mark.parametrize(
    "worse, better, chance", [(0, 0, 1), (3, 0, 1 / 8), (4, 1, 6 / 32), (7, 0, 1 / 128)]
)
def test_sign_test(worse: int, better: int, chance: float) -> None:
    assert sign_test(worse, better) == pytest.approx(chance)
