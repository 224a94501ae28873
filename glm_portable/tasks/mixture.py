"""The training mixture: which kind of chat comes how often."""

from collections.abc import Callable

from glm_portable.tasks.arithmetic import arithmetic
from glm_portable.tasks.chat import Chat, Tool, Turns, system
from glm_portable.tasks.draw import Draw, Split
from glm_portable.tasks.memory import needle, recall
from glm_portable.tasks.smalltalk import persona, smalltalk
from glm_portable.tasks.structured import structured
from glm_portable.tasks.text import strings
from glm_portable.tasks.tool_use import tool_use

# family -> share of the chats
MIX = {
    "tools": 0.40,
    "arithmetic": 0.20,
    "recall": 0.08,
    "needle": 0.08,
    "strings": 0.14,
    "json": 0.06,
    "chat": 0.03,
    "persona": 0.01,
}
PLAIN: dict[str, Callable[[Draw, bool], tuple[str, Turns]]] = {
    "arithmetic": arithmetic,
    "recall": recall,
    "needle": needle,
    "strings": strings,
    "json": structured,
    "chat": smalltalk,
    "persona": persona,
}
SHORT = ("arithmetic", "strings", "chat")


def generate(
    seed: int,
    index: int,
    split: Split = "train",
    *,
    family: str | None = None,
    thinking: bool | None = None,
    turn: str | None = None,
    kind: str | None = None,
    count: int | None = None,
) -> Chat:
    """Chat number `index` of a seed; family and thinking are drawn where None.

    turn, kind and count choose within the families tools, strings and needle: see `tool_use`,
    `strings` and `needle`.
    """
    draw = Draw(seed, index, split)
    family = family or _family(draw)
    thinking = draw.chance(0.5) if thinking is None else thinking
    tools: list[Tool] | None = None
    if family == "tools":
        skill, turns, tools = tool_use(draw, thinking, turn)
    elif family == "strings":
        skill, turns = strings(draw, thinking, kind)
    elif family == "needle":
        skill, turns = needle(draw, thinking, count)
    else:
        skill, turns = PLAIN[family](draw, thinking)
    return Chat(skill, family, thinking, tools, _lengthened(draw, family, thinking, turns))


def _family(draw: Draw) -> str:
    share, total = draw.random.random(), 0.0
    for family, weight in MIX.items():
        total += weight
        if share < total:
            return family
    return family


def _lengthened(draw: Draw, family: str, thinking: bool, turns: Turns) -> Turns:
    """Short exchanges are sometimes followed by more of them, or come after a system message."""
    if family in SHORT and not thinking and draw.chance(0.35):
        for _ in range(draw.integer(1, 3)):
            turns = turns + PLAIN[draw.choice(SHORT)](draw, thinking)[1]
    if family in ("arithmetic", "strings", "json") and draw.chance(0.08):
        turns = [system("You are a helpful assistant."), *turns]
    return turns
