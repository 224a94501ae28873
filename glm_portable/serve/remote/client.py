"""The engine, as the server's process has it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from socket import socket

from glm_portable.engine import admission
from glm_portable.engine.admission import EngineDraining
from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.serve.remote.wire import (
    Cancel,
    Deltas,
    Examine,
    Examined,
    FromEngine,
    Message,
    Observe,
    Report,
    Submit,
    Unpacker,
    WireError,
    pack,
)
from glm_portable.serve.request_metrics import RequestMetrics

log = logging.getLogger(__name__)

ENDED = "The engine has ended, and the server with it; send the request again."
PATIENCE_S = 1.0
"""For the engine's process to say what it saw; after that the last answer is used again."""


class EngineClient(asyncio.Protocol):
    """An `Engine` of the server (see `serve.generation`) that speaks to the one that computes.

    It is used on the event loop alone, which calls for the deltas too. A request is checked here,
    by the functions that the engine uses. observed: brought up to date by `observe`. ended: whether
    the engine's process has gone; then every request ends in an error and on_end is called.
    """

    def __init__(
        self,
        sock: socket,
        limits: EngineLimits,
        vocab_size: int,
        stats: EngineStats,
        observed: RequestMetrics,
    ) -> None:
        """stats: of the engine, before the first request."""
        self.limits, self.observed, self.ended = limits, observed, False
        self.on_end: Callable[[], None] = lambda: None
        self._sock, self._vocab_size, self._stats = sock, vocab_size, stats
        self._unpacker = Unpacker(FromEngine)
        self._receivers: dict[int, Callable[[Delta], None]] = {}
        self._submitted = self._received = 0
        self._transport: asyncio.Transport | None = None
        self._closing, self._closed = False, asyncio.Event()
        self._reported: asyncio.Future[None] | None = None
        self._examining: deque[Callable[[str | None], None]] = deque()

    async def connect(self) -> None:
        """Begin to listen, on the running loop."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=self._sock)

    async def close(self) -> None:
        """Tell the other process to end."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
            await self._closed.wait()

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        *,
        name: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> int:
        """As `Engine.submit`, which see; on_delta is called on the event loop."""
        admission.check_prompt(prompt_ids, self._vocab_size)
        admission.check_params(params, self._vocab_size)
        length = admission.max_length(prompt_ids, params, self.limits.max_model_len)
        admission.check_room(length, self.limits.num_pages, self.limits.page_size)
        if self.ended or self._transport is None:
            raise EngineDraining(ENDED)
        number = self._submitted
        self._send(Submit.of(number, list(prompt_ids), params, name, priority, cache_salt))
        self._submitted += 1
        self._receivers[number] = on_delta
        return number

    def cancel(self, request_id: int) -> None:
        """End a request, of which nothing more comes; no effect on one that has ended."""
        if self._receivers.pop(request_id, None) is not None and not self.ended:
            self._send(Cancel(request_id))

    def stats(self) -> EngineStats:
        """As the engine last told; requests that it had not received by then are waiting."""
        on_the_way = self._submitted - self._received
        healthy = self._stats.healthy and not self.ended
        return replace(self._stats, waiting=self._stats.waiting + on_the_way, healthy=healthy)

    async def observe(self) -> None:
        """Bring `observed` up to date, if the engine's process answers in time."""
        if self.ended:
            return
        if self._reported is None:
            self._reported = asyncio.get_running_loop().create_future()
            self._send(Observe())
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reported), PATIENCE_S)

    def examine(self, on_result: Callable[[str | None], None]) -> None:
        """As `Engine.examine`, which see; on_result is called on the event loop."""
        if self.ended or self._transport is None:
            raise EngineDraining(ENDED)
        self._send(Examine())
        self._examining.append(on_result)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._unpacker.feed(data):
                self._handle(message)
        except WireError as error:
            log.error("the engine's process cannot be understood: %s", error)
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        if self._closing:
            return
        self.ended = True
        self._report()
        for number, receive in list(self._receivers.items()):
            self._deliver(number, receive, Delta(finish_reason="error", error=ENDED))
        while self._examining:
            self._examining.popleft()("the engine has ended")
        self.on_end()

    def _handle(self, message: Deltas | Report | Examined) -> None:
        if isinstance(message, Examined):
            self._examining.popleft()(message.fault)
            return
        if isinstance(message, Report):
            self.observed.state = message.observed
            self._report()
            return
        self._received, self._stats = message.received, message.stats
        for number, delta in zip(message.numbers, message.deltas, strict=True):
            receive = self._receivers.get(number)
            if receive is not None:  # None: it was cancelled when this was on its way
                self._deliver(number, receive, delta)

    def _report(self) -> None:
        """Let those go on who wait in `observe`."""
        if self._reported is not None:
            self._reported.set_result(None)
            self._reported = None

    def _deliver(self, number: int, receive: Callable[[Delta], None], delta: Delta) -> None:
        if delta.finish_reason is not None:
            del self._receivers[number]
        try:
            receive(delta)
        except Exception:
            log.exception("the callback of request %d raised; it is cancelled", number)
            self.cancel(number)

    def _send(self, message: Message) -> None:
        assert self._transport is not None
        self._transport.write(pack(message))
