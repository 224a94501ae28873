"""What one streamed request says about time, by vLLM's definitions (`vllm bench serve`).

The first event with choices is the first token, whatever it holds; every further one adds an
inter-token latency, however many tokens it carries (MTP); the latency ends with the last of them,
in a chat with the usage after it. Tokens are counted by the server's usage.

Stricter than vLLM in one point: a stream that ends in an error, or without [DONE], is a failure.
"""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """One request. Times are seconds; ttft and latency since start_time.

    prompt_len: tokens of the prompt as it was made. output_tokens: None where no usage came.
    """

    prompt_len: int
    start_time: float
    success: bool = False
    error: str = ""
    ttft: float = 0.0
    latency: float = 0.0
    itl: list[float] = field(default_factory=list)
    output_tokens: int | None = None
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def fail(self, reason: str) -> None:
        self.success, self.error = False, reason


class StreamReader:
    """Fills a record from the bytes of server-sent events, each with the time it came at."""

    def __init__(self, record: Record, chat: bool) -> None:
        self._record, self._chat = record, chat
        self._rest = b""
        self._last: float | None = None
        self._done = False

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes, cut anywhere, that came at `now` on the clock of start_time."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):  # not a comment, an event's name or a blank line
                self._event(line[5:].strip(), now)

    def end(self) -> None:
        """The stream is over: decide whether it was whole."""
        record = self._record
        if record.error:
            return
        if self._last is None:
            record.fail("the stream had no token")
        elif not self._done:
            record.fail("the stream ended without [DONE]")
        else:
            record.success = True

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            self._record.fail(f"the stream held what is no JSON: {data[:100]!r}")
            return
        if not isinstance(chunk, dict) or "error" in chunk:
            self._record.fail(f"in the stream: {_message(chunk)}")
            return
        choices = chunk.get("choices")
        if choices:
            self._token(choices[0], now)
        elif chunk.get("usage"):
            self._record.output_tokens = chunk["usage"].get("completion_tokens")
            if self._chat and self._last is not None:
                self._record.latency = now - self._record.start_time

    def _token(self, choice: dict[str, Any], now: float) -> None:
        record = self._record
        if self._last is None:
            record.ttft = now - record.start_time
        else:
            record.itl.append(now - self._last)
        self._last, record.latency = now, now - record.start_time
        said = choice.get("delta") or {} if self._chat else choice
        names = ("reasoning_content", "content") if self._chat else ("text",)
        record.pieces += [said[name] for name in names if said.get(name)]


def _message(chunk: Any) -> str:
    """The sentence of an OpenAI error object."""
    error = chunk.get("error", chunk) if isinstance(chunk, dict) else chunk
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
