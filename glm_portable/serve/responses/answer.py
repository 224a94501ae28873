"""Answers of /v1/responses, streamed and whole, from the same blocks."""

import itertools
import secrets
import time
from collections.abc import Iterator
from typing import Any

from glm_portable.engine.types import Delta
from glm_portable.serve.blocks import Block, Blocks, Closed, Grown, Opened
from glm_portable.serve.conversation import Conversation
from glm_portable.serve.errors import ApiError
from glm_portable.serve.responses.items import Items, Status
from glm_portable.serve.streaming import Chunk, EventStream, TextEvent, event


class ResponseEvents(EventStream):
    """Events have names, and nothing comes after the one that ends the response."""

    end = b""

    def __init__(self, answer: "ResponseAnswer") -> None:
        super().__init__(answer)
        self._response = answer

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        return event(chunk, chunk["type"])

    def error(self, error: ApiError) -> bytes:
        return self.chunk(self._response.failed(error))


class ResponseAnswer:
    """Puts the deltas of a conversation's only choice together; read it once.

    shown: what every answer repeats of its request.
    """

    stream = ResponseEvents
    _grown: TextEvent

    def __init__(self, conversation: Conversation, shown: dict[str, Any]) -> None:
        self.generation = conversation.generation
        self._conversation, self._shown = conversation, shown
        self._choice = conversation.choices[0]
        self._blocks, self._items = Blocks(), Items()
        self._numbers = itertools.count()
        self._id, self._created = f"resp_{secrets.token_hex(24)}", int(time.time())

    async def whole(self) -> dict[str, Any]:
        """The response, when it is complete. Raises ApiError."""
        while await self.generation.wait():
            for _, events, _ in self._conversation.arrived():
                for _ in self._blocks.take(events):
                    pass
        return self._ended()

    def opening(self) -> Iterator[Chunk]:
        begun = self._body("in_progress", [])
        for name in ("response.created", "response.in_progress"):
            yield self._numbered({"type": name, "response": begun})

    def take(self, index: int, delta: Delta) -> Iterator[Chunk]:
        _, events, _ = self._conversation.take(index, delta)
        changes = list(self._blocks.take(events))
        if self._choice.finish_reason is not None:
            changes += self._blocks.close()
        for change in changes:
            if isinstance(change, Grown):
                yield self._numbered_text(change.text)
                continue
            last = isinstance(change, Closed) and change is changes[-1]
            status = self._last_status if last else "completed"
            yield from map(self._numbered, self._items.events(change, status))
            if isinstance(change, Opened):
                self._grown = self._events_of(change.block)

    def _events_of(self, block: Block) -> TextEvent:
        """Those of its growing, without their numbers."""

        def content(text: str) -> dict[str, Any]:
            [found] = self._items.events(Grown(block, text), "in_progress")
            return found

        return TextEvent(content, content("")["type"])

    def _numbered_text(self, text: str) -> bytes:
        """As `_numbered` numbers what is not encoded yet."""
        unfinished = self._grown.of(text).removesuffix(b"}\n\n")
        return b'%b,"sequence_number":%d}\n\n' % (unfinished, next(self._numbers))

    def ending(self) -> Iterator[Chunk]:
        yield self._last(self._ended())

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The event that ends a stream that fails."""
        output = [self._items.item(block, "incomplete") for block in self._blocks.found]
        told = {"code": "server_error", "message": error.message}
        return self._last(self._body("failed", output) | {"error": told})

    def _last(self, response: dict[str, Any]) -> dict[str, Any]:
        return self._numbered({"type": f"response.{response['status']}", "response": response})

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        return event | {"sequence_number": next(self._numbers)}

    @property
    def _last_status(self) -> Status:
        """Of the last block: cut off if the answer was."""
        return "incomplete" if self._choice.finish_reason == "length" else "completed"

    def _ended(self) -> dict[str, Any]:
        found = self._blocks.found
        output = [self._items.item(block, "completed") for block in found[:-1]]
        output += [self._items.item(block, self._last_status) for block in found[-1:]]
        status = self._last_status
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return self._body(status, output) | {
            "completed_at": int(time.time()) if status == "completed" else None,
            "incomplete_details": reason,
            "usage": self._usage(),
        }

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._conversation.model,
            "output": output,
            "usage": None,
            **self._shown,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._conversation.usage
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        }
