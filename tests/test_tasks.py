"""The synthetic tasks: deterministic, split by construction, and right."""

import ast
import hashlib
import json
import operator
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_portable.tasks import MIX, SKILLS, Case, Chat, Split, cases, everyday, generate, pools
from glm_portable.tasks.draw import Draw, held_out

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
POOLS = [
    *(getattr(pools, name) for name in dir(pools) if isinstance(getattr(pools, name), pools.Pool)),
    *pools.PARAMETERS.values(),
]


def chats(split: Split, count: int = 300, **options: Any) -> Iterator[Chat]:
    return (generate(3, index, split, **options) for index in range(count))


def all_cases(name: str, count: int = 30) -> list[Case]:
    modes = [True] if SKILLS[name].thinking_only else [True, False]
    return [case for thinking in modes for case in cases(name, thinking, count)]


def question(case: Case) -> str:
    return str([m for m in case.messages if m["role"] == "user"][-1]["content"])


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(["train", "test"]))
def test_the_same_seed_index_and_split_give_the_same_chat(
    seed: int, index: int, split: Split
) -> None:
    assert generate(seed, index, split) == generate(seed, index, split)


def test_seed_index_and_split_each_change_the_chat() -> None:
    base = generate(1, 1, "train")
    assert base not in (generate(2, 1, "train"), generate(1, 2, "train"), generate(1, 1, "test"))


@pytest.mark.parametrize(
    "split, digest",
    [("train", "9c07d1db4ca608dd"), ("test", "b51ce05e481c108b")],
)
def test_the_chats_are_those_that_the_model_was_trained_and_measured_on(
    split: Split, digest: str
) -> None:
    """A changed draw or word changes them, and then the shipped model's figures hold no more."""
    seen = hashlib.sha256()
    for chat in chats(split, 1000):
        seen.update(json.dumps([chat.skill, chat.tools, chat.messages]).encode())
    assert seen.hexdigest()[:16] == digest


def test_the_questions_are_those_that_the_published_figures_were_measured_on() -> None:
    seen = hashlib.sha256()
    for name in SKILLS:
        for asked in all_cases(name, 5):
            question = [asked.messages, asked.tools, asked.expected, asked.results]
            seen.update(json.dumps(question).encode())
    assert seen.hexdigest()[:16] == "690d1ac1b415bc2d"


@pytest.mark.parametrize("pool", POOLS)
def test_no_word_is_in_both_parts_of_a_pool(pool: pools.Pool) -> None:
    assert not set(pool.train) & set(pool.test)
    assert len(set(pool.train)) == len(pool.train) and len(set(pool.test)) == len(pool.test)


def test_no_everyday_tool_is_in_both_splits() -> None:
    assert not {t.name for t in everyday.TRAIN} & {t.name for t in everyday.TEST}


@pytest.mark.parametrize("make", ["word", "name", "city", "thing"])
def test_no_drawn_word_is_in_both_splits(make: str) -> None:
    drawn = {
        split: {getattr(Draw(0, i, split), make)() for i in range(3000)}
        for split in ("train", "test")
    }
    # An invented word can happen to be a real one: those are split by the lists alone.
    real = {word for pool in POOLS for word in pool.train + pool.test} | set(pools.VERBS)
    assert len(drawn["test"] - real) > 50
    assert not (drawn["train"] & drawn["test"]) - real


def test_no_sum_is_in_both_splits() -> None:
    def sums(split: Split) -> set[str]:
        asked = (c.messages for c in chats(split, 2000, family="arithmetic", thinking=True))
        return {m["content"].split(" = ")[0] for ms in asked for m in ms if " = " in m["content"]}

    train, test = sums("train"), sums("test")
    assert len(test) > 500 and not train & test


def test_the_held_out_part_is_a_tenth() -> None:
    assert 0.09 < sum(held_out(f"n{number}") for number in range(10_000)) / 10_000 < 0.11


def test_families_come_in_their_shares() -> None:
    families = [chat.family for chat in chats("train", 3000)]
    for family, share in MIX.items():
        assert abs(families.count(family) / 3000 - share) < 0.03


def test_thoughts_are_there_exactly_in_thinking_chats() -> None:
    for chat in chats("train"):
        thoughts = [m["reasoning_content"] for m in chat.messages if m["role"] == "assistant"]
        assert all(bool(thought) == chat.thinking for thought in thoughts)


@pytest.mark.parametrize("skill", ["add", "sub", "mul"])
def test_sums_are_right(skill: str) -> None:
    for case in all_cases(skill):
        a, sign, b = _operands(question(case))
        assert case.expected["content"] == f"{a} {sign} {b} = {OPERATORS[sign](a, b)}"


def test_the_steps_of_a_sum_are_right() -> None:
    for name in ("add", "sub", "mul", "word_problem"):
        for case in cases(name, True, 60):
            steps = re.findall(r"([\d+*-]+)=(\d+)", case.expected["reasoning_content"])
            assert steps and all(_value_of(left) == int(right) for left, right in steps)


def test_word_problems_are_right() -> None:
    for case in all_cases("word_problem"):
        a, b = map(int, re.findall(r"\d+", question(case)))
        expected = a + b if "gets" in question(case) else a - b
        assert re.findall(r"\d+", case.expected["content"]) == [str(expected)]


def _operands(text: str) -> tuple[int, str, int]:
    found = re.search(r"(\d+) ?([+*-]) ?(\d+)", text)
    assert found is not None
    return int(found[1]), found[2], int(found[3])


def _value_of(expression: str) -> int:
    """Sums of products, which is all that the thoughts contain."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        assert isinstance(node, ast.BinOp)
        sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}[type(node.op)]
        return int(OPERATORS[sign](value(node.left), value(node.right)))

    # A digit may stand before "+10" (a borrow); leading zeros do not occur.
    return value(ast.parse(expression, mode="eval").body)


def test_recalled_facts_were_told() -> None:
    for case in all_cases("recall"):
        told = " ".join(m["content"] for m in case.messages if m["role"] == "user")
        found = re.fullmatch(r"Your (.+?) is (.+)\.", case.expected["content"])
        if found is None:
            unknown = case.expected["content"].removeprefix("I do not know your ")[:-1]
            assert f"y {unknown} is" not in told
        else:
            assert f"y {found[1]} is {found[2]}." in told


@pytest.mark.parametrize("skill", ["needle12", "needle40", "needle100"])
def test_the_needle_is_in_the_haystack_once(skill: str) -> None:
    for case in all_cases(skill, 10):
        assert "\n".join(m["content"] for m in case.messages).count(case.expected["content"]) == 1


def test_the_long_needles_have_that_many_facts() -> None:
    for skill, count in (("needle40", 40), ("needle100", 100)):
        for case in all_cases(skill, 5):
            text = str(case.messages[0]["content"]).removeprefix("Use these facts.\n")
            assert text.split("\n")[0].count(".") == count


def test_list_answers_are_right() -> None:
    def listed(case: Case) -> list[str]:
        return re.split(r", ", re.split(r": |: ", question(case))[-1].rstrip("?."))

    def numbers(case: Case) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", question(case))]

    for case in all_cases("sort_num"):
        assert case.expected["content"] == ", ".join(map(str, sorted(numbers(case))))
    for case in all_cases("max"):
        pick = max if "largest" in question(case) else min
        assert case.expected["content"] == str(pick(numbers(case)))
    for case in all_cases("count"):
        assert case.expected["content"] == f"{len(listed(case))} items."
    for case in all_cases("first_last"):
        assert case.expected["content"] == listed(case)[0 if "first" in question(case) else -1]


def test_word_answers_are_right() -> None:
    for case in all_cases("copy"):
        assert question(case).endswith(f": {case.expected['content']}")
    for case in all_cases("upper"):
        answer = case.expected["content"]
        assert answer.isupper() and answer.lower() in question(case)
    for case in all_cases("spell"):
        assert case.expected["content"].replace("-", "") in question(case)
        assert re.fullmatch(r"\w(-\w)*", case.expected["content"])


def test_json_answers_hold_what_the_text_says() -> None:
    for case in all_cases("json"):
        text = question(case)
        for value in json.loads(case.expected["content"]).values():
            if isinstance(value, bool):
                assert ("is married" in text) == value
            else:
                assert all(str(v) in text for v in (value if isinstance(value, list) else [value]))


JSON_TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}


def test_calls_fit_their_declaration_and_were_asked_for() -> None:
    for case in [*all_cases("tool_call", 100), *all_cases("tool_parallel", 50)]:
        declared = {tool["function"]["name"]: tool["function"] for tool in case.tools or []}
        for call in case.expected["tool_calls"]:
            function = declared[call["function"]["name"]]["parameters"]
            arguments = json.loads(call["function"]["arguments"])
            assert set(function["required"]) <= set(arguments) <= set(function["properties"])
            for key, value in arguments.items():
                _check_argument(function["properties"][key], value, question(case))


def _check_argument(schema: dict[str, Any], value: Any, text: str) -> None:
    if schema["type"] == "number":
        assert isinstance(value, int | float) and not isinstance(value, bool)
    else:
        assert type(value) is JSON_TYPES[schema["type"]]
    assert value in schema.get("enum", [value])
    parts = value if isinstance(value, list) else [value]
    if isinstance(value, dict):
        parts = list(value.values())
    said = ["true" if part is True else "false" if part is False else str(part) for part in parts]
    assert all(part in text for part in said)


def test_no_tool_can_do_what_is_declined() -> None:
    descriptions = [
        (re.compile(re.sub(r"\\\{.*?\\\}", ".+", re.escape(request))), tool.description)
        for tool in everyday.TEST
        for request, _ in tool.requests
    ]
    matched = 0
    for case in all_cases("tool_decline", 60):
        declared = [tool["function"] for tool in case.tools or []]
        assert not any(function["name"] in question(case) for function in declared)
        for pattern, description in descriptions:
            if pattern.fullmatch(question(case)):
                matched += 1
                assert description not in [function["description"] for function in declared]
    assert matched > 10


def test_the_values_to_report_are_in_the_results_and_in_the_answer() -> None:
    for case in [*all_cases("tool_answer"), *all_cases("tool_answer2")]:
        returned = " ".join(m["content"] for m in case.messages if m["role"] == "tool")
        assert case.results
        assert all(v in returned and v in case.expected["content"] for v in case.results)


@pytest.mark.parametrize("name", SKILLS)
def test_a_case_ends_before_its_answer(name: str) -> None:
    for case in all_cases(name, 5):
        assert case.messages[-1]["role"] in ("user", "tool")
        assert case.expected["role"] == "assistant"
        assert ("tool_calls" in case.expected) == SKILLS[name].calls
        assert bool(case.expected["reasoning_content"]) == case.thinking


def test_tool_results_name_the_call_that_they_answer() -> None:
    for chat in chats("train", 200, family="tools"):
        pending: list[str] = []
        for message in chat.messages:
            if message["role"] == "tool":
                assert message["tool_call_id"] == pending.pop(0)
            else:
                assert not pending
            pending += [call["id"] for call in message.get("tool_calls", [])]


def test_what_is_asked_with_thinking_only_is_refused_without() -> None:
    with pytest.raises(ValueError, match="mul is asked with thinking only"):
        cases("mul", False, 1)
