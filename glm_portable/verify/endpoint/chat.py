"""One question to a server and what it says, streamed or not, in one shape."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from glm_portable.verify.endpoint.client import CHAT, Broken, Client, Stream, brief

Message = dict[str, Any]
MAX_TOKENS = 260
"""Enough for the longest right answer of the pocket model, thoughts included."""


@dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer; switches: its chat_template_kwargs."""

    name: str
    messages: Sequence[Message]
    tools: Sequence[Message] | None = None
    switches: Mapping[str, bool] = field(default_factory=dict)
    max_tokens: int = MAX_TOKENS

    def body(self, model: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "messages": list(self.messages),
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        if self.tools:
            body["tools"] = list(self.tools)
        if self.switches:
            body["chat_template_kwargs"] = dict(self.switches)
        return body

    @property
    def thinking(self) -> bool:
        return self.switches.get("enable_thinking", True)

    @property
    def text(self) -> str:
        """The last message, for findings."""
        return brief(str(self.messages[-1].get("content")), 80)


@dataclass(frozen=True)
class Call:
    """A tool call as it was sent; arguments is text that should be JSON."""

    name: str
    arguments: str
    id: str = ""

    @property
    def parsed(self) -> Any:
        """None if the arguments are no JSON."""
        try:
            return json.loads(self.arguments)
        except ValueError:
            return None


@dataclass(frozen=True)
class Token:
    """A token with its log probability and the likeliest ones, by text."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class Said:
    """An answer. usage: as sent, empty if none was. tokens: empty without logprobs."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()

    @property
    def everything(self) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """What two equal answers have in common: all but the ids of calls."""
        return self.reasoning, self.content, tuple((c.name, c.arguments) for c in self.calls)

    @property
    def text(self) -> str:
        """All that was generated, for people and for the detector of repetition."""
        calls = " ".join(f"{call.name}({call.arguments})" for call in self.calls)
        return "\n".join(part for part in (self.reasoning, self.content, calls) if part)

    def count(self, name: str) -> int:
        """usage.prompt_tokens or completion_tokens. Raises Broken if it is no whole number."""
        value = self.usage.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Broken(f"usage.{name} is {value!r}, not a count")
        return value


def ask(client: Client, model: str, question: Question, **extra: Any) -> Said:
    """The whole answer. extra: further fields of the request. Raises Refused and Broken."""
    return from_whole(client.post(CHAT, {**question.body(model), **extra}))


def ask_streaming(
    client: Client, model: str, question: Question, **extra: Any
) -> tuple[Said, Stream]:
    """The same answer put together from its pieces, and the pieces."""
    body = {**question.body(model), "stream_options": {"include_usage": True}, **extra}
    stream = client.stream(CHAT, body)
    return from_chunks(stream.chunks), stream


def from_whole(body: Mapping[str, Any]) -> Said:
    """From the object of an unstreamed answer. Raises Broken if it has not its shape."""
    with _shaped(body):
        return _whole(body)


def from_chunks(chunks: Sequence[Mapping[str, Any]]) -> Said:
    """From the objects of a streamed answer. Raises Broken."""
    with _shaped(chunks):
        return _joined(chunks)


@contextmanager
def _shaped(answer: Any) -> Iterator[None]:
    """A field of another type than the API's shows as one of Python's errors."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise Broken(f"the answer has not the API's shape: {brief(json.dumps(answer))}") from None


def _whole(body: Mapping[str, Any]) -> Said:
    choice = _first(body.get("choices"), "choices")
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise Broken(f"the answer has no message: {brief(json.dumps(body))}")
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    return Said(
        content=_text(message.get("content")),
        reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        calls=tuple(calls),
        finish_reason=choice.get("finish_reason"),
        usage=body.get("usage") or {},
        tokens=tuple(_tokens(choice.get("logprobs"))),
    )


def _joined(chunks: Sequence[Mapping[str, Any]]) -> Said:
    content, reasoning = [], []
    calls: dict[int, dict[str, str]] = {}
    tokens: list[Token] = []
    finish: str | None = None
    usage: Mapping[str, Any] = {}
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            content.append(_text(delta.get("content")))
            reasoning.append(_text(delta.get("reasoning_content") or delta.get("reasoning")))
            for piece in delta.get("tool_calls") or ():
                _add(calls, piece)
            tokens += _tokens(choice.get("logprobs"))
            finish = choice.get("finish_reason") or finish
    made = tuple(Call(**calls[index]) for index in sorted(calls))
    return Said("".join(content), "".join(reasoning), made, finish, usage, tuple(tokens))


def _add(calls: dict[int, dict[str, str]], piece: Mapping[str, Any]) -> None:
    index = piece.get("index")
    if not isinstance(index, int):
        raise Broken(f"a streamed tool call has no index: {brief(json.dumps(piece))}")
    call = calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
    function = piece.get("function") or {}
    call["id"] = call["id"] or _text(piece.get("id"))
    call["name"] += _text(function.get("name"))
    call["arguments"] += _text(function.get("arguments"))


def _call(call: Any) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise Broken(f"a tool call has no function: {brief(json.dumps(call))}")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise Broken(
            f"the arguments of a tool call are not text but {brief(json.dumps(arguments))}"
        )
    return Call(_text(function.get("name")), arguments, _text(call.get("id")))


def _tokens(logprobs: Any) -> list[Token]:
    entries = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    found = []
    for entry in entries or ():
        top = {_piece(item): float(item["logprob"]) for item in entry.get("top_logprobs") or ()}
        found.append(Token(_piece(entry), float(entry["logprob"]), top))
    return found


def _piece(entry: Mapping[str, Any]) -> str:
    """A token's text: of its bytes where they are sent, which no tokenizer's markers disguise."""
    raw = entry.get("bytes")
    return bytes(raw).decode(errors="replace") if raw else str(entry["token"])


def _first(choices: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise Broken(f"the answer has no {name}: {brief(json.dumps(choices))}")
    return choices[0]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Broken(f"the answer has {brief(json.dumps(value))} where text belongs")
    return value
