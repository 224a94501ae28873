"""Answers of /v1/messages, streamed and whole, from the same blocks."""

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from glm_portable.engine.types import Delta
from glm_portable.serve.anthropic.errors import error_body
from glm_portable.serve.blocks import Block, Blocks, Change, Closed, Grown, Opened
from glm_portable.serve.conversation import ChatChoice, Conversation
from glm_portable.serve.errors import ApiError
from glm_portable.serve.events import Event
from glm_portable.serve.streaming import Chunk, EventStream, TextEvent, event

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageEvents(EventStream):
    """Events have names, and nothing comes after message_stop."""

    end = b""

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        return event(chunk, chunk["type"])

    def error(self, error: ApiError) -> bytes:
        return event(error_body(error.status, error.message), "error")


class MessageAnswer:
    """Puts the deltas of a conversation's only choice together; read it once.

    cache_read: report what was found in the prefix cache apart from the other input.
    """

    stream = MessageEvents
    _grown: TextEvent

    def __init__(self, conversation: Conversation, cache_read: bool) -> None:
        self.generation = conversation.generation
        self._conversation, self._cache_read = conversation, cache_read
        self._blocks, self._begun = Blocks(), False
        self._id = f"msg_{secrets.token_hex(12)}"

    async def whole(self) -> dict[str, Any]:
        """The message, when it is complete. Raises ApiError."""
        while await self.generation.wait():
            for choice, events, _ in self._conversation.arrived():
                self._changes(choice, events)
        content = [_block(block, whole=True) for block in self._blocks.found]
        return self._message(content) | _ending(self._conversation.choices[0])

    def opening(self) -> Iterable[Chunk]:
        return ()

    def take(self, index: int, delta: Delta) -> Iterator[Chunk]:
        choice, events, _ = self._conversation.take(index, delta)
        if not self._begun:  # with the first token, whose time clients measure
            self._begun = True
            yield {"type": "message_start", "message": self._message([])}
            yield {"type": "ping"}
        for change in self._changes(choice, events):
            if isinstance(change, Opened):
                self._grown = TextEvent(partial(_grown, change.block), "content_block_delta")
            if isinstance(change, Grown):
                yield self._grown.of(change.text)
            else:
                yield from _events(change)

    def ending(self) -> Iterator[Chunk]:
        ending = _ending(self._conversation.choices[0])
        yield {"type": "message_delta", "delta": ending, "usage": self._usage()}
        yield {"type": "message_stop"}

    def _changes(self, choice: ChatChoice, events: Sequence[Event]) -> list[Change]:
        """Those of one delta; the last one closes what is open."""
        changes = list(self._blocks.take(events))
        if choice.finish_reason is not None:
            changes += self._blocks.close()
        return changes

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._conversation.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        """input_tokens are those that are not counted as read from the cache."""
        usage = self._conversation.usage
        cached = usage.cached if self._cache_read else 0
        return {
            "input_tokens": usage.prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
        }


def _ending(choice: ChatChoice) -> dict[str, Any]:
    if choice.finish_reason == "stop" and isinstance(choice.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_reason}
    return {"stop_reason": _STOP_REASONS[choice.finish_reason or ""], "stop_sequence": None}


def _block(block: Block, whole: bool) -> dict[str, Any]:
    """The block, or what it is when it starts: empty."""
    text = block.text if whole else ""
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    if block.kind == "content":
        return {"type": "text", "text": text, "citations": None}
    arguments = json.loads(text or "{}")
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}


def _grown(block: Block, text: str) -> dict[str, Any]:
    kind, field = _DELTAS[block.kind]
    return {
        "type": "content_block_delta",
        "index": block.index,
        "delta": {"type": kind, field: text},
    }


def _events(change: Opened | Closed) -> list[dict[str, Any]]:
    block, index = change.block, change.block.index
    if isinstance(change, Opened):
        opened = _block(block, whole=False)
        return [{"type": "content_block_start", "index": index, "content_block": opened}]
    signature = {"type": "signature_delta", "signature": ""}
    signed = {"type": "content_block_delta", "index": index, "delta": signature}
    stop = {"type": "content_block_stop", "index": index}
    return [signed, stop] if block.kind == "reasoning" else [stop]


_DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "content": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}
