"""One HTTP request and its answer: what its log line, the metrics and its trace tell about it."""

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from glm_portable.engine.types import Delta, SamplingParams, Timeline


@dataclass(slots=True)
class Exchange:
    """Filled in while the request is served; it holds no text of prompt or answer.

    started: seconds of `time.monotonic()`. status 0: no answer was begun. error: the code of the
    error that the client got. body_bytes: that were read. params: of the first choice. choices: of
    all prompts together.
    """

    request_id: str
    method: str
    path: str
    started: float = field(default_factory=time.monotonic)
    started_ns: int = field(default_factory=time.time_ns)
    status: int = 0
    error: str | None = None
    body_bytes: int = 0
    model: str | None = None
    params: SamplingParams | None = None
    choices: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def begin(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """The engine starts on these: one entry a choice, the same object for the same prompt."""
        self.params, self.choices = params, len(prompts)
        self.prompt_tokens = sum(len(prompt) for prompt in {id(p): p for p in prompts}.values())
        self.completion_tokens, self.finish_reasons, self.timelines = 0, [], []

    def count(self, delta: Delta) -> None:
        """The engine delivered this."""
        self.completion_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self.finish_reasons.append(delta.finish_reason)
        if delta.timeline is not None:
            self.timelines.append(delta.timeline)


# Follows a request into the tasks and threads that work for it, as log lines need it.
_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current() -> Exchange | None:
    """The exchange that the running code works for."""
    return _current.get()


def enter(exchange: Exchange) -> None:
    """From here on, in this task and those it starts, `exchange` is the current one."""
    _current.set(exchange)


def note_error(code: str | None) -> None:
    """The client of the current exchange gets this error."""
    exchange = current()
    if exchange is not None:
        exchange.error = code or "other"
