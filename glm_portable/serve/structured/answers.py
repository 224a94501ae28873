"""What a whole answer must be: thinking first, if the prompt lets the model think, then the format.

- A format alone: the answer is the format.
- A forced tool_choice: the answer is calls, which begin in the prompt where no thinking comes
  first; a format beside it has no say.
- tool_choice auto with a format: the answer is either calls or the format.
- tool_choice auto with a strict tool: text and calls as the model likes; the calls are enforced.

In the answer a newline may come first, as GLM-4.5 writes one; the parser drops it. The thinking
is free text up to </think>.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm_portable.engine import grammar
from glm_portable.engine.grammar import Grammar
from glm_portable.serve.chat import Format as Layout
from glm_portable.serve.chat import Prompt
from glm_portable.serve.parsing import CALL, END_THINK, THINK
from glm_portable.serve.structured import formats
from glm_portable.serve.structured.calls import Calls, is_strict, opening
from glm_portable.serve.structured.compiler import Compiler, Wanted
from glm_portable.serve.structured.formats import Format
from glm_portable.serve.tools import Choice
from glm_portable.tokenizer import Tokenizer

Tool = Mapping[str, Any]


@dataclass(frozen=True)
class Constraint:
    """What a chat request asks for; a tool_choice that names a tool leaves only that one.

    tools: with their places in the request. parallel: whether there may be several calls.
    """

    format: Format | None
    tools: Sequence[tuple[str, Tool]]
    choice: Choice
    parallel: bool

    @classmethod
    def of(
        cls,
        format: Format | None,
        tools: Sequence[Tool],
        choice: Choice,
        parallel: bool | None = None,
    ) -> "Constraint":
        places = [(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
        if choice.mode == "none":
            places = []
        if choice.name is not None:
            places = [pair for pair in places if pair[1]["function"]["name"] == choice.name][:1]
        several = parallel is not False and choice.mode != "named"
        return cls(format, places, choice, several)

    @property
    def constrains(self) -> bool:
        strict = any(is_strict(tool) for _, tool in self.tools)
        return self.format is not None or self.choice.forced or strict


@dataclass(frozen=True)
class Constrained:
    """A prompt and what its answer must be.

    prefix: text at the prompt's end that belongs to the answer.
    """

    prompt: Prompt
    prefix: str = ""
    grammar: Grammar | None = None


async def constrain(
    compiler: Compiler,
    tokenizer: Tokenizer,
    layout: Layout,
    prompt: Prompt,
    constraint: Constraint,
) -> Constrained:
    """A chat prompt, at whose end an answer that does not think may begin. Raises ApiError."""
    if not constraint.constrains:
        return Constrained(prompt)
    prefix = ""
    if prompt.thinking:
        if not prompt.starts_in_reasoning:
            # GLM-4.5 opens its thinking itself: always, so it can stand in the prompt.
            prompt = replace(_longer(prompt, f"\n{THINK}", tokenizer), starts_in_reasoning=True)
    elif constraint.choice.forced:
        prefix = opening(layout, _only_name(constraint))
        prompt = _longer(prompt, prefix, tokenizer)

    def write() -> Wanted:
        return _wanted(compiler, layout, prompt, constraint)

    return Constrained(prompt, prefix, await compiler.compile(write))


async def constrain_text(compiler: Compiler, format: Format | None) -> Grammar | None:
    """For a completion: the format from its first token on. Raises ApiError."""
    if format is None:
        return None

    def write() -> Wanted:
        return Wanted(formats.lark(format, compiler.from_gbnf), format.field)

    return await compiler.compile(write)


def _longer(prompt: Prompt, text: str, tokenizer: Tokenizer) -> Prompt:
    ids = prompt.token_ids + tokenizer.encode(text)
    return replace(prompt, token_ids=ids, text=prompt.text + text)


def _only_name(constraint: Constraint) -> str | None:
    names = [tool["function"]["name"] for _, tool in constraint.tools]
    return names[0] if len(names) == 1 else None


def _wanted(compiler: Compiler, layout: Layout, prompt: Prompt, constraint: Constraint) -> Wanted:
    calls = Calls(constraint.tools, layout).rules if constraint.tools else ""
    more = "more_calls" if constraint.parallel else ""
    thinking, rules = "", calls
    if prompt.starts_in_reasoning:
        tags = (END_THINK, CALL) if constraint.tools else (END_THINK,)
        end = grammar.literal(END_THINK)
        thinking, rules = "THINKING", f"{calls}\nTHINKING: ({grammar.without(*tags)}) {end}"
    if constraint.choice.forced:
        first = "call" if _only_name(constraint) is None else "rest_of_call"
        if thinking:  # then the prompt has not begun the call
            first = f"{grammar.literal(opening(layout))} call"
        return Wanted(f"start: {thinking} {first} {more}\n{rules}", "tools")
    if constraint.format is None:
        head, tail = (
            f"HEAD: ({grammar.without(CALL)}) {grammar.literal(CALL)}",
            grammar.without(CALL),
        )
        answer = "(HEAD call)* TAIL" if constraint.parallel else "(HEAD call | TAIL)"
        return Wanted(f"start: {thinking} {answer}\n{head}\nTAIL: {tail}\n{rules}", "tools")
    answer = '"\\n"? @format'
    if constraint.tools:
        answer = f"({answer} | {grammar.literal(opening(layout))} call {more})"
    text = formats.lark(constraint.format, compiler.from_gbnf)
    main = f"start: {thinking} {answer}\n{rules}"
    return Wanted(grammar.together(main, format=text), constraint.format.field)
