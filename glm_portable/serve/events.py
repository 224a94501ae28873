"""What a generated message consists of, in pieces and as a whole.

Nobody changes a piece once it is made. The text is not frozen all the same, as a delta is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True, unsafe_hash=True)
class Reasoning:
    """The next piece of the thinking."""

    text: str


@dataclass(slots=True, unsafe_hash=True)
class Content:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call of a declared tool begins; index counts the calls of one message from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A fragment of the call's arguments; the fragments of an index join to one JSON object."""

    index: int
    text: str


Event = Reasoning | Content | ToolCallStart | ToolCallArguments


@dataclass(frozen=True)
class ToolCall:
    """A whole call; arguments is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ParsedMessage:
    """A whole message; None where there was nothing."""

    reasoning: str | None
    content: str | None
    tool_calls: tuple[ToolCall, ...]


def fold(events: Iterable[Event]) -> ParsedMessage:
    """Join a message's events, all of them, into the message."""
    text: dict[type, list[str]] = {Reasoning: [], Content: []}
    starts: list[ToolCallStart] = []
    arguments: list[list[str]] = []
    for event in events:
        if isinstance(event, ToolCallStart):
            starts.append(event)
            arguments.append([])
        elif isinstance(event, ToolCallArguments):
            arguments[event.index].append(event.text)
        else:
            text[type(event)].append(event.text)
    return ParsedMessage(
        reasoning="".join(text[Reasoning]) or None,
        content="".join(text[Content]) or None,
        tool_calls=tuple(
            ToolCall(start.id, start.name, "".join(parts))
            for start, parts in zip(starts, arguments, strict=True)
        ),
    )
