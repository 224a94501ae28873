"""A message's events as consecutive blocks, each of thinking, of text or of one call.

The Messages and the Responses API both show a message as such a list and stream it block by block.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from glm_portable.serve.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart


@dataclass
class Block:
    """`text` grows while it is open: thinking, text, or the JSON of a call's arguments.

    call_id, name: of a call alone.
    """

    index: int
    kind: Literal["reasoning", "content", "call"]
    text: str = ""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Opened:
    block: Block


@dataclass(frozen=True)
class Grown:
    """`text` has been added to the end of the block."""

    block: Block
    text: str


@dataclass(frozen=True)
class Closed:
    block: Block


Change = Opened | Grown | Closed


class Blocks:
    """Cuts the events of one message; at most one block is open at a time."""

    def __init__(self) -> None:
        self.found: list[Block] = []
        self._open: Block | None = None

    def take(self, events: Iterable[Event]) -> Iterator[Change]:
        for event in events:
            if isinstance(event, ToolCallStart):
                yield from self.close()
                yield self._start("call", event.id, event.name)
                continue
            kind = _KINDS[type(event)]
            if self._open is None or self._open.kind != kind:
                yield from self.close()
                yield self._start(kind)
            assert self._open is not None
            self._open.text += event.text
            yield Grown(self._open, event.text)

    def close(self) -> Iterator[Closed]:
        """Close the block that is open, if any: the message is over."""
        block, self._open = self._open, None
        if block is not None:
            yield Closed(block)

    def _start(
        self, kind: Literal["reasoning", "content", "call"], call_id: str = "", name: str = ""
    ) -> Opened:
        self._open = Block(len(self.found), kind, "", call_id, name)
        self.found.append(self._open)
        return Opened(self._open)


_KINDS: dict[type, Literal["reasoning", "content", "call"]] = {
    Reasoning: "reasoning",
    Content: "content",
    ToolCallArguments: "call",
}
