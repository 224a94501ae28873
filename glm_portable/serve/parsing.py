"""One incremental grammar for what GLM writes: thinking, text and tool calls.

`Parser` is fed text as it is generated, in pieces of any size, and returns events; `parse` folds
the same events over a whole text. Streamed and unstreamed answers are therefore equal by
construction, whatever the pieces. One tolerant grammar reads both layouts: GLM-4.5 and 4.6 put a
newline after the tool's name and between the tags, GLM-4.7 does not.

    [<think>] reasoning </think> content <tool_call>name
    <arg_key>key</arg_key>
    <arg_value>value</arg_value>
    </tool_call>

Decisions where models stray from it (malformed text never raises):

- Without an opening <think> the text is content, unless the prompt already opened the thinking.
- A call inside the thinking ends it. A call of an undeclared tool is no call: its text is content.
  A <tool_call> in the thinking that no name follows is a mention, and stays reasoning.
- Content is the text outside thinking and calls, verbatim, without leading whitespace and without
  the whitespace that only separated it from a call. Reasoning is stripped on both sides, as the
  chat template strips it when it comes back.
- Values end at </arg_value> alone and may hold any other tag. Text between a call's tags is
  dropped, as are keys without a value. Of a repeated key the first value counts.
- A call that is cut off keeps its complete arguments, and a cut-off string as far as it came; its
  JSON is closed. Cut off inside its name, it is content (inside the thinking, reasoning).
"""

import re
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from glm_portable.serve.events import (
    Content,
    Event,
    ParsedMessage,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
    fold,
)
from glm_portable.serve.tool_schema import SPACE, Arguments, declared_tools

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY = "<arg_key>", "</arg_key>"
VALUE, END_VALUE = "<arg_value>", "</arg_value>"

_NAME_LIMIT = 256
"""Characters after <tool_call> in which its name must end; the most text a parser holds back."""


def new_call_id() -> str:
    """A random id in the form OpenAI's clients know."""
    return f"call_{secrets.token_hex(12)}"


class _Tags:
    """Looks for the first of some tags in text that arrives in pieces.

    Relies on every tag having its only "<" at the front: only the last "<" can start a partial one.
    """

    def __init__(self, *tags: str) -> None:
        self._tags = tags
        self._pattern = re.compile("|".join(map(re.escape, tags)) or r"(?!)")
        self._longest = max(map(len, tags), default=1)

    def search(self, text: str, start: int) -> re.Match[str] | None:
        return self._pattern.search(text, start)

    def cut_off(self, text: str, start: int) -> int:
        """Where a tag may have begun at the end of text; len(text) if none has."""
        at = text.rfind("<", max(start, len(text) - self._longest + 1))
        begun = at >= 0 and any(tag.startswith(text[at:]) for tag in self._tags)
        return at if begun else len(text)


_NAME = re.compile(r"[ \t\r\n]*+(.*?)(\n|<arg_key>|</tool_call>|<tool_call>|</think>)", re.DOTALL)
_LIKE_A_NAME = re.compile(r"[\w.-]+")
_IN_CALL = _Tags(KEY, END_CALL, CALL)
_IN_KEY = _Tags(END_KEY, VALUE, END_CALL, CALL)
_BEFORE_VALUE = _Tags(VALUE, KEY, END_CALL, CALL)
_IN_VALUE = _Tags(END_VALUE)


class Parser:
    """Turns generated text into events; one parser for one message.

    tools: OpenAI tool objects; calls are read only of these. starts_in_reasoning: the prompt ended
    in <think> (`Prompt.starts_in_reasoning`). thinking False makes all text content, whatever it
    holds. parse_tools False (tool_choice "none") leaves <tool_call> in the text.
    """

    def __init__(
        self,
        tools: Sequence[Any] | None = None,
        *,
        starts_in_reasoning: bool = False,
        thinking: bool = True,
        parse_tools: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._tools = declared_tools(tools) if parse_tools else {}
        calls = (CALL,) if self._tools else ()
        self._tags = {Content: _Tags(*calls), Reasoning: _Tags(END_THINK, *calls)}
        self._starts_in_reasoning = starts_in_reasoning
        self._new_id = new_id
        self._state: Callable[[], bool] = self._start if thinking else self._text
        self._buffer, self._at, self._ended = "", 0, False
        self._events: list[Event] = []
        self._kind: type[Reasoning] | type[Content] = Content  # of the text outside calls
        self._begun = self._tail_counts = False
        self._space: list[str] = []  # whitespace that counts only if more text follows
        self._calls = 0
        self._call: Arguments | None = None
        self._key: list[str] = []

    @property
    def reasoning(self) -> bool:
        """Whether what comes next belongs to the thinking, as far as is known."""
        return self._kind is Reasoning or (self._starts_in_reasoning and self._state == self._start)

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._call is not None or self._calls > 0

    def feed(self, text: str) -> list[Event]:
        """Take the next piece of generated text; return what it settled."""
        if self._buffer or "<" in text or self._state != self._text:
            self._buffer += text
            while self._state():
                pass
            self._buffer, self._at = self._buffer[self._at :], 0
        else:  # most pieces: they take a fraction of the time
            self._write(text)
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """The text is over, complete or not: return what was held back."""
        self._ended = True
        events = self.feed("")
        if self._call is not None:
            self._close_call(self._call)
        elif self._tail_counts and self._space:
            self._events.append(Content("".join(self._space)))
        return events + self._events

    def _take(self, tags: _Tags) -> tuple[str, str | None]:
        """Consume the text up to the first tag and the tag; without one, all sure text."""
        found = tags.search(self._buffer, self._at)
        if found:
            text, self._at = self._buffer[self._at : found.start()], found.end()
            return text, found.group()
        end = len(self._buffer) if self._ended else tags.cut_off(self._buffer, self._at)
        text, self._at = self._buffer[self._at : end], end
        return text, None

    def _start(self) -> bool:
        rest = self._buffer[self._at :].lstrip(SPACE)
        self._at = len(self._buffer) - len(rest)
        if len(rest) < len(THINK) and THINK.startswith(rest) and not self._ended:
            return False
        if rest.startswith(THINK):
            self._at += len(THINK)
        if rest.startswith(THINK) or self._starts_in_reasoning:
            self._kind = Reasoning
        self._state = self._text
        return True

    def _text(self) -> bool:
        text, tag = self._take(self._tags[self._kind])
        self._write(text)
        if tag == END_THINK:
            self._to_content()
        elif tag == CALL:
            self._state = self._name
        return tag is not None

    def _write(self, text: str) -> None:
        if not self._begun:
            text = text.lstrip(SPACE)
        visible = text.rstrip(SPACE)
        tail = text[len(visible) :]
        if visible:
            self._events.append(self._kind("".join([*self._space, visible])))
            self._begun, self._space = True, []
            self._tail_counts = self._kind is Content
        if tail:
            self._space.append(tail)

    def _to_content(self) -> None:
        if self._kind is Reasoning:
            self._kind, self._begun, self._space = Content, False, []
        self._state = self._text

    def _name(self) -> bool:
        found = _NAME.match(self._buffer, self._at, self._at + _NAME_LIMIT)
        held = len(self._buffer) - self._at
        if not found and held < _NAME_LIMIT and not self._ended:
            return False
        name = found[1].rstrip(SPACE) if found and found[2] != END_THINK else ""
        if found and name in self._tools:
            self._at = found.start(2)
            self._open_call(name)
        else:
            self._no_call(name)
        return True

    def _no_call(self, name: str) -> None:
        if _LIKE_A_NAME.fullmatch(name):  # a tool that was not declared: the thinking is over
            self._to_content()
        self._write(CALL)
        self._state = self._text

    def _open_call(self, name: str) -> None:
        self._to_content()
        self._events.append(ToolCallStart(self._calls, self._new_id(), name))
        call = Arguments(self._tools[name])
        self._call, self._tail_counts = call, False
        self._state = partial(self._between, call)

    def _between(self, call: Arguments) -> bool:
        """Between two arguments, and before the first and after the last."""
        _, tag = self._take(_IN_CALL)
        self._next_in_call(call, tag)
        return tag is not None

    def _in_key(self, call: Arguments) -> bool:
        text, tag = self._take(_IN_KEY)
        self._key.append(text)
        if tag is not None:
            self._at -= len(tag) if tag != END_KEY else 0
            self._state = partial(self._before_value, call)
        return tag is not None

    def _before_value(self, call: Arguments) -> bool:
        _, tag = self._take(_BEFORE_VALUE)
        if tag == VALUE:
            call.key("".join(self._key).strip(SPACE))
            self._state = partial(self._in_value, call)
        else:
            self._next_in_call(call, tag)
        return tag is not None

    def _in_value(self, call: Arguments) -> bool:
        text, tag = self._take(_IN_VALUE)
        self._argue(call.write(text))
        if tag is not None:
            self._argue(call.end())
            self._state = partial(self._between, call)
        return tag is not None

    def _next_in_call(self, call: Arguments, tag: str | None) -> None:
        if tag == KEY:
            self._key, self._state = [], partial(self._in_key, call)
        elif tag is not None:
            self._close_call(call)
            self._state = self._name if tag == CALL else self._text

    def _argue(self, fragment: str) -> None:
        if fragment:
            self._events.append(ToolCallArguments(self._calls, fragment))

    def _close_call(self, call: Arguments) -> None:
        self._argue(call.close())
        self._calls, self._call = self._calls + 1, None


def parse(
    text: str,
    tools: Sequence[Any] | None = None,
    *,
    starts_in_reasoning: bool = False,
    thinking: bool = True,
    parse_tools: bool = True,
) -> ParsedMessage:
    """Parse a whole message; the parameters are those of `Parser`."""
    parser = Parser(
        tools,
        starts_in_reasoning=starts_in_reasoning,
        thinking=thinking,
        parse_tools=parse_tools,
    )
    return fold([*parser.feed(text), *parser.finish()])
