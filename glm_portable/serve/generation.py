"""The choices of one request, from the engine to whoever sends them to the client."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.serve.errors import ApiError, internal_error, timed_out, unavailable
from glm_portable.serve.exchange import current
from glm_portable.serve.gathering import Gathering


class Engine(Protocol):
    """What the server needs of an engine. It is used on the event loop alone."""

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
        """Queue a request and return its id; on_delta is called on the loop, and never from here.

        name: whose request it is, for the engine's log.

        Raises UsageError for one that cannot be served, EngineDraining when it is too late.
        """

    def cancel(self, request_id: Any) -> None:
        """Free a request's pages before the next step; no effect on one that has ended."""

    def stats(self) -> EngineStats:
        """A look at the engine as of now."""

    def examine(self, on_result: Callable[[str | None], None]) -> None:
        """Compare the weights with the first time; on_result is called as on_delta is.

        It is told what is wrong, for the end of a sentence, or None.
        """


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
    whoever sends them can gather those that came together. take_now: offered a delta that comes
    while `wait` waits, and neither ends its choice nor has much in it; True if it took it, and
    nobody need be woken.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        registry: "set[Generation]",
        timeout_s: float | None = None,
        stream_interval: int = 1,
    ) -> None:
        """`registry` holds this object from its start to its end.

        timeout_s: after which `arrived` raises. stream_interval: tokens to gather.
        """
        self._engine, self._jobs, self._registry = engine, jobs, registry
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._exchange = current()
        self._given_up = unavailable(
            "The server stopped before the answer was complete; send it again."
        )
        self._queue: deque[tuple[int, Delta]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._running: dict[int, Any] = {}
        self._receivers: list[Callable[[Delta], None]] = [
            partial(self._receive, index) for index in range(len(jobs))
        ]
        if stream_interval > 1:
            self._receivers = [Gathering(stream_interval, r).receive for r in self._receivers]
        self.before_waiting: Callable[[], Awaitable[None]] = _nothing
        self.take_now: Callable[[int, Delta], bool] = _not_now

    def start(self) -> None:
        """Submit every job; if one is refused, none runs. Raises the engine's UsageError."""
        self._registry.add(self)
        name = ""
        if self._exchange is not None:
            name = self._exchange.request_id
            self._exchange.begin([job.prompt_ids for job in self._jobs], self._jobs[0].params)
        if self._timeout_s is not None:
            error = timed_out(self._timeout_s)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._timeout_s, self.abort, error)
        try:
            for index, job in enumerate(self._jobs):
                self._running[index] = self._engine.submit(
                    job.prompt_ids,
                    job.params,
                    self._receivers[index],
                    name=name,
                    priority=job.priority,
                    cache_salt=job.cache_salt,
                )
        except BaseException:
            self.cancel()
            raise

    def _receive(self, index: int, delta: Delta) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():  # done: whoever waited was cancelled
            self._queue.append((index, delta))
            return
        try:
            taken = self._taken(index, delta)
        except Exception as error:
            self._waiter = None
            waiter.set_exception(error)
            return
        if not taken:
            self._queue.append((index, delta))
        elif self._running:
            return
        self._waiter = None
        waiter.set_result(None)

    def _taken(self, index: int, delta: Delta) -> bool:
        """Whether it was taken at once."""
        if delta.finish_reason is not None or delta.prompt_logprobs or index not in self._running:
            return False
        taken = self.take_now(index, delta)
        if taken and self._exchange is not None:
            self._exchange.count(delta)
        return taken

    async def wait(self) -> bool:
        """Wait until something has arrived. False: every choice has ended.

        Raises what `take_now` raised.
        """
        while self._running and not self._queue:
            await self.before_waiting()
            if not self._queue:
                self._waiter = asyncio.get_running_loop().create_future()
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
            self._receivers[index](Delta(finish_reason="abort"))

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


def _not_now(index: int, delta: Delta) -> bool:
    return False
