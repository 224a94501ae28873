"""Output items of a response, and the events that stream them."""

import secrets
from collections.abc import Iterator
from typing import Any, Literal

from glm_portable.serve.blocks import Block, Change, Grown, Opened

Status = Literal["in_progress", "completed", "incomplete"]

_PREFIXES = {"reasoning": "rs", "content": "msg", "call": "fc"}


class Items:
    """Gives the blocks of one message their ids and shows them as items."""

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}

    def item(self, block: Block, status: Status) -> dict[str, Any]:
        """The item; one in progress is empty."""
        item_id = self._ids.setdefault(
            block.index, f"{_PREFIXES[block.kind]}_{secrets.token_hex(16)}"
        )
        item: dict[str, Any] = {"id": item_id, "status": status}
        begun = status != "in_progress"
        if block.kind == "call":
            arguments = block.text if begun else ""
            call = {"call_id": block.call_id, "name": block.name, "arguments": arguments}
            return item | {"type": "function_call"} | call
        content = [_part(block, block.text)] if begun else []
        if block.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def events(self, change: Change, status: Status) -> Iterator[dict[str, Any]]:
        """What streams a change, without sequence numbers. status: of a block that is closed."""
        block = change.block
        at: dict[str, Any] = {"output_index": block.index}
        if isinstance(change, Opened):
            item = self.item(block, "in_progress")
            yield {"type": "response.output_item.added", "item": item, **at}
        inner = at | {"item_id": self._ids[block.index]}
        if block.kind == "call":
            yield from _call_events(change, inner)
        else:
            yield from _text_events(change, inner | {"content_index": 0})
        if not isinstance(change, Opened | Grown):
            item = self.item(block, status)
            yield {"type": "response.output_item.done", "item": item, **at}


def _part(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _text_events(change: Change, at: dict[str, Any]) -> Iterator[dict[str, Any]]:
    block = change.block
    if isinstance(change, Opened):
        yield {"type": "response.content_part.added", "part": _part(block, ""), **at}
        return
    name = "reasoning_text" if block.kind == "reasoning" else "output_text"
    if block.kind == "content":
        at = at | {"logprobs": []}
    if isinstance(change, Grown):
        yield {"type": f"response.{name}.delta", "delta": change.text, **at}
        return
    yield {"type": f"response.{name}.done", "text": block.text, **at}
    at = {key: value for key, value in at.items() if key != "logprobs"}
    yield {"type": "response.content_part.done", "part": _part(block, block.text), **at}


def _call_events(change: Change, at: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name = "response.function_call_arguments"
    if isinstance(change, Grown):
        yield {"type": f"{name}.delta", "delta": change.text, **at}
    elif not isinstance(change, Opened):
        block = change.block
        yield {"type": f"{name}.done", "name": block.name, "arguments": block.text, **at}
