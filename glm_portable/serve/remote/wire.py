"""What the two processes say to each other: MessagePack, each message after its length.

Decoding makes values of the types that are declared here and no others, so a message cannot make
the other side run anything.
"""

import struct
from collections.abc import Iterator
from dataclasses import fields
from socket import socket
from typing import Any

import msgspec

from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.serve.request_metrics import Observed

MAX_BYTES = 2**30
"""Of one message: the scores of the longest prompt take 50 MB."""

_LENGTH = struct.Struct("!I")
_SAME = [f.name for f in fields(SamplingParams) if f.name not in ("stop", "grammar")]


class WireError(Exception):
    """The other side sent what it never should."""


class Message(msgspec.Struct, array_like=True):
    """A kind of message is told by its tag."""


class Submit(Message, tag="submit"):
    """number: by which both sides call the request. What JSON can spell is not always Unicode, so
    stop and cache_salt are bytes. grammar: its text.
    """

    number: int
    name: str
    priority: int
    cache_salt: bytes
    prompt_ids: list[int]
    params: dict[str, Any]
    stop: list[bytes]
    grammar: str | None

    @classmethod
    def of(
        cls,
        number: int,
        prompt_ids: list[int],
        params: SamplingParams,
        name: str,
        priority: int,
        cache_salt: str,
    ) -> "Submit":
        stop = [_to_bytes(text) for text in params.stop]
        grammar = None if params.grammar is None else params.grammar.text
        others = {name: getattr(params, name) for name in _SAME}
        salt = _to_bytes(cache_salt)
        return cls(number, name, priority, salt, prompt_ids, others, stop, grammar)

    @property
    def salt(self) -> str:
        return _to_text(self.cache_salt)

    def sampling(self, grammar: Any = None) -> SamplingParams:
        """The parameters, with the compiled grammar."""
        others = self.params | {"stop_token_ids": tuple(self.params["stop_token_ids"])}
        return SamplingParams(**others, stop=tuple(map(_to_text, self.stop)), grammar=grammar)


class Cancel(Message, tag="cancel"):
    number: int


class Observe(Message, tag="observe"):
    """Asks for `Report`."""


class Examine(Message, tag="examine"):
    """Asks for `Examined`."""


class Deltas(Message, tag="deltas"):
    """What a step brought, of all requests in it. received: how many were submitted by then."""

    received: int
    stats: EngineStats
    numbers: list[int]
    deltas: list[Delta]


class Report(Message, tag="report"):
    observed: Observed


class Examined(Message, tag="examined"):
    """What the earliest `Examine` without an answer has found; None is no fault."""

    fault: str | None


ToEngine = Submit | Cancel | Observe | Examine
FromEngine = Deltas | Report | Examined

_encoder = msgspec.msgpack.Encoder()


def pack(message: Any) -> bytes:
    """A message as it is sent. Raises WireError if it is too large."""
    data = _encoder.encode(message)
    if len(data) > MAX_BYTES:
        raise WireError(f"a message of {len(data):,} bytes is too large.")
    return _LENGTH.pack(len(data)) + data


class Unpacker:
    """Takes bytes as they come and makes messages of them."""

    def __init__(self, kinds: Any) -> None:
        """kinds: the messages that may come, a union."""
        self._decoder = msgspec.msgpack.Decoder(kinds)
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are whole by now. Raises WireError."""
        self._bytes += data
        start = 0
        while (end := self._end(start)) is not None:
            yield _decode(self._decoder, self._bytes[start + _LENGTH.size : end])
            start = end
        del self._bytes[:start]

    def _end(self, start: int) -> int | None:
        if len(self._bytes) < start + _LENGTH.size:
            return None
        end = start + _LENGTH.size + _checked(*_LENGTH.unpack_from(self._bytes, start))
        return end if end <= len(self._bytes) else None


def receive(sock: socket, kinds: Any) -> Any:
    """Wait for one message of a blocking socket; None at its end. Raises WireError."""
    head = _exactly(sock, _LENGTH.size)
    if head is None:
        return None
    data = _exactly(sock, _checked(*_LENGTH.unpack(head)))
    return None if data is None else _decode(msgspec.msgpack.Decoder(kinds), data)


def _exactly(sock: socket, count: int) -> bytearray | None:
    data = bytearray()
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            return None
        data += more
    return data


def _checked(length: int) -> int:
    if length > MAX_BYTES:
        raise WireError(f"a message of {length:,} bytes was announced.")
    return length


def _decode(decoder: Any, data: bytes | bytearray) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise WireError(f"a message cannot be read: {error}.") from None


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
