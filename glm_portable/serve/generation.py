"""The bridge from the engine's thread to the server's event loop."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.serve.errors import ApiError, internal_error, timed_out, unavailable
from glm_portable.serve.exchange import current
from glm_portable.serve.mailbox import Mailbox


class Engine(Protocol):
    """What the server needs of `glm_portable.engine.engine.Engine`; every method is thread-safe."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        *,
        name: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> Any:
        """Queue a request, whose deltas come on the engine's thread, and return its id.

        name: whose request it is, for the engine's log.

        Raises UsageError for one that cannot be served, EngineDraining when it is too late.
        """

    def cancel(self, request_id: Any) -> None:
        """Free a request's pages before the next step; no effect on one that has ended."""

    def stats(self) -> EngineStats:
        """A look at the engine as of now."""

    def examine(self, on_result: Callable[[str | None], None]) -> None:
        """Compare the weights with the first time; see `glm_portable.engine.engine.Engine`."""


@dataclass(frozen=True)
class Job:
    """One choice to generate. priority, cache_salt: see `glm_portable.engine.engine.Engine`."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""


class Generation:
    """The choices of one HTTP request, generated together.

    Used as `async with`: whatever has not ended when the block is left, for any reason, is
    cancelled. Read as `while await generation.wait(): for index, delta in generation.arrived()`.
    Deltas wait in a queue of their own, so a slow client never holds the engine; the queue is
    bounded by the length of the answers. before_waiting: called when no delta is left, so that
    whoever sends them can gather those that came together.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        registry: "set[Generation]",
        mailbox: Mailbox,
        timeout_s: float | None = None,
    ) -> None:
        """`registry` holds this object from its start to its end. mailbox: of the running loop.

        timeout_s: after which `arrived` raises.
        """
        self._engine, self._jobs, self._registry = engine, jobs, registry
        self._mailbox, self._timeout_s = mailbox, timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._exchange = current()
        self._given_up = unavailable(
            "The server stopped before the answer was complete; send it again."
        )
        self._queue: deque[tuple[int, Delta]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._running: dict[int, Any] = {}
        self.before_waiting: Callable[[], Awaitable[None]] = _nothing

    def start(self) -> None:
        """Submit every job; if one is refused, none runs. Raises the engine's UsageError."""
        self._registry.add(self)
        name = ""
        if self._exchange is not None:
            name = self._exchange.request_id
            self._exchange.begin([job.prompt_ids for job in self._jobs], self._jobs[0].params)
        if self._timeout_s is not None:
            error = timed_out(self._timeout_s)
            loop = self._mailbox.loop
            self._timer = loop.call_later(self._timeout_s, self.abort, error)
        try:
            for index, job in enumerate(self._jobs):
                receive = self._receiver(index)
                self._running[index] = self._engine.submit(
                    job.prompt_ids,
                    job.params,
                    receive,
                    name=name,
                    priority=job.priority,
                    cache_salt=job.cache_salt,
                )
        except BaseException:
            self.cancel()
            raise

    def _receiver(self, index: int) -> Callable[[Delta], None]:
        return lambda delta: self._mailbox.put(self._receive, (index, delta))

    def _receive(self, item: tuple[int, Delta]) -> None:
        self._queue.append(item)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():  # done: whoever waited was cancelled
            waiter.set_result(None)

    async def wait(self) -> bool:
        """Wait until something has arrived. False: every choice has ended."""
        while self._running and not self._queue:
            await self.before_waiting()
            if not self._queue:
                self._waiter = self._mailbox.loop.create_future()
                await self._waiter
        return bool(self._running)

    def arrived(self) -> Iterator[tuple[int, Delta]]:
        """(choice, delta) of all that is there, of choices that have not ended.

        Raises ApiError when the engine failed or gave up a choice.
        """
        while self._queue:
            index, delta = self._queue.popleft()
            if index not in self._running:
                continue
            if self._exchange is not None:
                self._exchange.count(delta)
            self._raise_failure(delta)
            if delta.finish_reason is not None:
                del self._running[index]
            yield index, delta

    def stop(self, index: int) -> None:
        """End one choice early; no further delta of it arrives."""
        if index in self._running:
            self._engine.cancel(self._running.pop(index))

    def cancel(self) -> None:
        """End every choice."""
        self._registry.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for index in list(self._running):
            self.stop(index)

    def abort(self, error: ApiError | None = None) -> None:
        """Make `arrived` raise this: the server cannot wait for the rest."""
        self._given_up = error or self._given_up
        for index in self._running:
            self._receive((index, Delta(finish_reason="abort")))

    def _raise_failure(self, delta: Delta) -> None:
        if delta.finish_reason == "abort":
            raise self._given_up
        if delta.finish_reason == "error":
            raise (
                ApiError(500, delta.error, code="engine_error") if delta.error else internal_error()
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()


async def _nothing() -> None:
    pass
