"""The examination: questions of each skill on words, numbers and tools never seen in training."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count as counting
from itertools import islice
from typing import Any

from glm_portable.tasks.chat import Chat, Message, Tool, Turns
from glm_portable.tasks.draw import Split
from glm_portable.tasks.mixture import SHORT, generate


@dataclass(frozen=True)
class Case:
    """A question with its right answer.

    messages: the chat up to the question. expected: the right assistant message. results: the
    values from tool results that the answer has to name; then any wording will do.
    """

    skill: str
    thinking: bool
    messages: Turns
    tools: list[Tool] | None
    expected: Message
    results: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skill:
    """How a skill's questions are drawn.

    options: arguments of `generate`. only: keep chats of this skill. calls: ask for the last
    message that calls tools instead of the last answer. short: longest first message, in
    characters. reads_results: judged by the values from tool results. thinking_only: not
    expected of a model that does not think.
    """

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    only: str | None = None
    calls: bool = False
    short: int | None = None
    reads_results: bool = False
    thinking_only: bool = False


SKILLS = {
    "tool_call": Skill("tools", {"turn": "call"}, calls=True),
    "tool_answer": Skill("tools", {"turn": "call"}, reads_results=True),
    "tool_parallel": Skill("tools", {"turn": "parallel"}, calls=True),
    "tool_answer2": Skill("tools", {"turn": "parallel"}, reads_results=True),
    "tool_decline": Skill("tools", {"turn": "decline"}),
    "tool_none": Skill("tools", {"turn": "none"}),
    "add": Skill("arithmetic", only="add"),
    "sub": Skill("arithmetic", only="sub"),
    "mul": Skill("arithmetic", only="mul", thinking_only=True),
    "word_problem": Skill("arithmetic", only="word_problem"),
    "recall": Skill("recall", only="recall"),
    "needle12": Skill("needle", short=700),
    "needle40": Skill("needle", {"count": 40}),
    "needle100": Skill("needle", {"count": 100}),
    "copy": Skill("strings", {"kind": "copy"}),
    "upper": Skill("strings", {"kind": "upper"}),
    "spell": Skill("strings", {"kind": "spell"}),
    "sort_num": Skill("strings", {"kind": "sort_num"}),
    "count": Skill("strings", {"kind": "count"}),
    "first_last": Skill("strings", {"kind": "first_last"}),
    "max": Skill("strings", {"kind": "max"}),
    "json": Skill("json"),
    "chat": Skill("chat", only="chat"),
    "unknown": Skill("chat", only="unknown"),
    "persona": Skill("persona"),
}


def cases(
    name: str, thinking: bool, count: int, *, seed: int = 9000, split: Split = "test"
) -> list[Case]:
    """`count` questions of one of SKILLS; the seed of thinking questions is one higher.

    Raises ValueError for a skill that is asked with thinking only.
    """
    skill = SKILLS[name]
    if skill.thinking_only and not thinking:
        raise ValueError(f"{name} is asked with thinking only")
    chats = _chats(skill, thinking, seed + thinking, split)
    return [_case(name, skill, chat) for chat in islice(chats, count)]


def _chats(skill: Skill, thinking: bool, seed: int, split: Split) -> Iterator[Chat]:
    for index in counting():
        chat = generate(seed, index, split, family=skill.family, thinking=thinking, **skill.options)
        too_long = skill.short is not None and len(chat.messages[0]["content"]) > skill.short
        if skill.only in (None, chat.skill) and not too_long:
            yield chat


def _case(name: str, skill: Skill, chat: Chat) -> Case:
    turns = chat.messages
    if skill.family in SHORT:  # the exchanges that may follow are of other skills
        turns = turns[: 3 if turns[0]["role"] == "system" else 2]
    at = max(
        i
        for i, message in enumerate(turns)
        if message["role"] == "assistant" and (not skill.calls or "tool_calls" in message)
    )
    results = _results(turns) if skill.reads_results else ()
    return Case(name, chat.thinking, turns[:at], chat.tools, turns[at], results)


def _results(turns: Turns) -> tuple[str, ...]:
    """The values returned since the last user message that the right answer repeats."""
    question = max(i for i, message in enumerate(turns) if message["role"] == "user")
    returned = [m["content"] for m in turns[question:] if m["role"] == "tool"]
    values = [str(value) for text in returned for value in json.loads(text).values()]
    return tuple(value for value in values if value in turns[-1]["content"])
