"""Calling one tool or two, answering from what they return, and declining what no tool can do."""

from glm_portable.tasks.arithmetic import arithmetic
from glm_portable.tasks.chat import Tool, Turns, assistant, calling, system, tool_result, user
from glm_portable.tasks.draw import Draw
from glm_portable.tasks.invented_tools import InventedTool
from glm_portable.tasks.smalltalk import smalltalk
from glm_portable.tasks.text import strings
from glm_portable.tasks.tool_kinds import Arguments, EverydayTool

AnyTool = EverydayTool | InventedTool
SYSTEM = [
    "You are a helpful assistant.",
    "Be brief.",
    "You are a helpful assistant. Use the tools when needed.",
]
# kind of turn -> the cumulative share of turns up to it
SHARES = {"call": 0.72, "parallel": 0.84, "decline": 0.93, "none": 1.0}


def tool_use(draw: Draw, thinking: bool, turn: str | None = None) -> tuple[str, Turns, list[Tool]]:
    """(skill of the last turn, chat, declared tools); `turn` is a key of SHARES, drawn if None."""
    tools = _toolset(draw)
    turns: Turns = [system(draw.choice(SYSTEM))] if draw.chance(0.2) else []
    # The template drops the thoughts of earlier turns, so only one turn could be learnt from.
    count = 1 if thinking else draw.choice([1, 2, 2, 3])
    if thinking and draw.chance(0.15):
        turns += smalltalk(draw, thinking)[1]
    skill = ""
    for _ in range(count):
        share = draw.random.random()
        kind = turn or next(kind for kind, end in SHARES.items() if share < end)
        skill = f"tool_{kind}"
        turns += TURNS[kind](draw, thinking, tools)
    return skill, turns, [tool.declaration for tool in tools]


def _toolset(draw: Draw) -> list[AnyTool]:
    count = draw.choice([1, 2, 2, 3])
    tools: list[AnyTool] = []
    while len(tools) < count:
        tool = _draw_tool(draw, everyday=0.4)
        if not any(_same_job(tool, other) for other in tools):
            tools.append(tool)
    return tools


def _draw_tool(draw: Draw, everyday: float) -> AnyTool:
    return EverydayTool.drawn(draw) if draw.chance(everyday) else InventedTool.drawn(draw)


def _same_job(a: AnyTool, b: AnyTool) -> bool:
    if isinstance(a, InventedTool) and isinstance(b, InventedTool):
        return a.name == b.name or (a.verb, a.noun) == (b.verb, b.noun)
    if isinstance(a, EverydayTool) and isinstance(b, EverydayTool):
        return a.name == b.name or a.origin == b.origin
    return a.name == b.name


def _could_serve(tool: AnyTool, wanted: AnyTool) -> bool:
    """Whether somebody could reasonably use `tool` for a request that was made for `wanted`."""
    if isinstance(wanted, InventedTool):
        if isinstance(tool, InventedTool):
            return tool.name == wanted.name or tool.noun == wanted.noun
        return tool.name == wanted.name or wanted.noun in tool.name
    return _same_job(tool, wanted)


def _call_thought(tool: AnyTool, arguments: Arguments) -> str:
    said = ", ".join(f"{key} {tool.say(key, value)}" for key, value in arguments.items())
    return f"Use {tool.name}: {said}." if said else f"Use {tool.name}."


def _call(draw: Draw, thinking: bool, tools: list[AnyTool]) -> Turns:
    tool = draw.choice(tools)
    question, arguments = tool.ask(draw)
    result, answer = tool.result(draw, arguments)
    returned = ", ".join(f"{key} {value}" for key, value in result.items())
    call_thought = _call_thought(tool, arguments) if thinking else ""
    return [
        user(question),
        calling([(tool.name, arguments)], call_thought),
        tool_result(result),
        assistant(answer, f"The tool returned {returned}." if thinking else ""),
    ]


def _parallel(draw: Draw, thinking: bool, tools: list[AnyTool]) -> Turns:
    pair = [draw.choice(tools), draw.choice(tools)]
    asked = [tool.ask(draw) for tool in pair]
    results = [tool.result(draw, args) for tool, (_, args) in zip(pair, asked, strict=True)]
    thoughts = [_call_thought(tool, args) for tool, (_, args) in zip(pair, asked, strict=True)]
    calls = [(tool.name, args) for tool, (_, args) in zip(pair, asked, strict=True)]
    question = draw.choice([" Also: ", " And: ", " Then: "]).join(text for text, _ in asked)
    return [
        user(question),
        calling(calls, " ".join(thoughts) if thinking else ""),
        *(tool_result(result, i) for i, (result, _) in enumerate(results)),
        assistant(
            " ".join(answer for _, answer in results), "Both tools returned." if thinking else ""
        ),
    ]


def _decline(draw: Draw, thinking: bool, tools: list[AnyTool]) -> Turns:
    wanted = _draw_unavailable(draw, tools)
    question = wanted.ask(draw)[0]
    while isinstance(wanted, InventedTool) and f"Use {wanted.name}" in question:
        question = wanted.ask(draw)[0]
    thoughts = "No tool fits this request." if thinking else ""
    return [user(question), assistant("Sorry, I have no tool for that.", thoughts)]


def _draw_unavailable(draw: Draw, tools: list[AnyTool]) -> AnyTool:
    while True:
        wanted = InventedTool.drawn(draw) if draw.chance(0.6) else EverydayTool.drawn(draw)
        if not any(_could_serve(tool, wanted) for tool in tools):
            return wanted


def _none(draw: Draw, thinking: bool, tools: list[AnyTool]) -> Turns:
    return draw.choice([smalltalk, arithmetic, smalltalk, strings])(draw, thinking)[1]


TURNS = {"call": _call, "parallel": _parallel, "decline": _decline, "none": _none}
