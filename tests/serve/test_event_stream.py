"""Which events share a write: those that came together, and none that could have gone before."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import pytest

from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.serve.generation import Generation, Job
from glm_portable.serve.streaming import _MOST_TOGETHER, PIECES, Chunk, EventStream
from tests.serve.fake_engine import WAIT_S


class Scripted:
    """An engine whose deltas the test sends."""

    def __init__(self) -> None:
        self.send: Callable[[Delta], None] = lambda delta: None

    def submit(self, ids: Sequence[int], params: SamplingParams, on_delta: Any, **_: Any) -> int:
        self.send = on_delta
        return 0

    def cancel(self, request_id: int) -> None:
        pass


class Spelling:
    """An answer of one choice: each text is an event."""

    stream = EventStream

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    async def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self) -> Iterable[Chunk]:
        return ()

    def take(self, index: int, delta: Delta) -> Iterable[Chunk]:
        if delta.text == "broken":
            raise ValueError("a fault of the server")
        if delta.text == "early":
            self.generation.stop(index)
        # Others are held back, as a part of a tool call is.
        return [{"text": delta.text}] if delta.text else []

    def ending(self) -> Iterable[Chunk]:
        return ()


class Line:
    """Pieces to a client that reads, or does not; `sent` is what went out, piece by piece."""

    def __init__(self, sent: list[bytes]) -> None:
        self._sent, self._reads = sent, asyncio.Event()
        self._reads.set()

    @property
    def writable(self) -> bool:
        return self._reads.is_set()

    @writable.setter
    def writable(self, reads: bool) -> None:
        (self._reads.set if reads else self._reads.clear)()

    async def drain(self) -> None:
        await self._reads.wait()

    def write_piece(self, data: bytes) -> None:
        self._sent.append(data)


def token(text: str, reason: Any = None) -> Delta:
    return Delta((1,), text, finish_reason=reason)


class Run:
    """A stream under way. bodies: what it has sent."""

    def __init__(self) -> None:
        self.engine, self.bodies = Scripted(), list[bytes]()
        self._grew = asyncio.Condition()
        self.line = Line(self.bodies)
        self.generation = Generation(
            self.engine,  # type: ignore[arg-type]  # without stats, which no stream asks for
            [Job([1], SamplingParams())],
            set(),
        )
        self.generation.start()

    def send(self, *texts: str) -> None:
        for text in texts:
            self.engine.send(token(text))

    def end(self, text: str = "") -> None:
        self.engine.send(token(text, "stop"))

    async def until(self, count: int) -> None:
        """So many bodies were sent."""
        async with self._grew:
            await self._grew.wait_for(lambda: len(self.bodies) >= count)

    async def message(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            async with self._grew:
                self.bodies.append(message["body"])
                self._grew.notify_all()


Script = Callable[[Run], Awaitable[None]]


def sent(script: Script, *, pieces: bool = False) -> list[bytes]:
    """The bodies that a stream of the script's deltas is sent in."""

    async def run() -> list[bytes]:
        running = Run()

        async def receive() -> Any:
            await asyncio.Event().wait()

        scope = {"extensions": {PIECES: running.line}} if pieces else {}
        stream = EventStream(Spelling(running.generation))
        task = asyncio.create_task(stream(scope, receive, running.message))
        async with asyncio.timeout(WAIT_S):
            await script(running)
            await task
        return running.bodies

    return asyncio.run(run())


async def begun(run: Run) -> None:
    """Until the stream waits for deltas."""
    while run.generation._waiter is None:
        await asyncio.sleep(0)


def events(body: bytes) -> int:
    return body.count(b"data:")


def texts(bodies: Iterable[bytes]) -> list[str]:
    lines = b"".join(bodies).decode().removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    return [json.loads(line.removeprefix("data: "))["text"] for line in lines]


def test_events_that_came_together_share_a_write() -> None:
    async def script(run: Run) -> None:
        run.send("a", "b", "c")
        run.end("d")

    [body] = sent(script)
    assert events(body) == 5 and body.endswith(b"data: [DONE]\n\n")


def test_an_event_never_waits_for_the_next_delta() -> None:
    async def script(run: Run) -> None:
        run.send("a")
        await run.until(1)
        run.send("b", "")  # nothing comes of the second
        await run.until(2)
        run.end("c")

    assert [events(body) for body in sent(script)] == [1, 1, 2]


@pytest.mark.parametrize("pieces", [False, True])
def test_a_long_answer_that_is_there_already_is_sent_in_parts(pieces: bool) -> None:
    async def script(run: Run) -> None:
        run.send(*["a"] * (2 * _MOST_TOGETHER))
        run.end()

    found = [events(body) for body in sent(script, pieces=pieces)]
    assert found == [_MOST_TOGETHER, _MOST_TOGETHER, 1]


def test_what_comes_while_the_stream_waits_is_sent_at_once() -> None:
    """Before the engine's callback returns: nobody is woken for it."""

    async def script(run: Run) -> None:
        await begun(run)
        for count, text in enumerate(["a", "b", "c"], 1):
            run.send(text)
            assert len(run.bodies) == count
        run.send("")
        assert len(run.bodies) == 3
        run.end("d")

    bodies = sent(script, pieces=True)
    assert texts(bodies) == ["a", "b", "c", "d"] and [events(b) for b in bodies] == [1, 1, 1, 2]


def test_nothing_is_sent_to_a_client_that_does_not_read() -> None:
    """What comes meanwhile waits in the queue, and goes out together, in order."""

    async def script(run: Run) -> None:
        await begun(run)
        run.send("a")
        run.line.writable = False
        run.send("b", "c")
        for _ in range(5):
            await asyncio.sleep(0)
        run.send("d")
        assert texts(run.bodies) == ["a"]
        run.line.writable = True
        await begun(run)
        run.send("e")
        run.end()

    bodies = sent(script, pieces=True)
    assert texts(bodies) == ["a", "b", "c", "d", "e"]
    assert [events(body) for body in bodies] == [1, 2, 1, 1, 1]


def test_a_fault_in_what_is_sent_at_once_ends_the_stream() -> None:
    async def script(run: Run) -> None:
        await begun(run)
        run.send("a", "broken", "b")

    bodies = sent(script, pieces=True)
    assert texts(bodies[:1]) == ["a"] and len(bodies) == 2
    assert json.loads(bodies[1].removeprefix(b"data: "))["error"]["code"] == "internal_error"


def test_a_choice_that_ends_early_ends_the_stream() -> None:
    async def script(run: Run) -> None:
        await begun(run)
        run.send("a", "early")  # nothing more comes of the engine

    assert texts(sent(script, pieces=True)) == ["a", "early"]


def test_an_answer_that_is_given_up_ends_after_what_was_sent() -> None:
    async def script(run: Run) -> None:
        await begun(run)
        run.send("a")
        run.generation.abort()
        run.send("b")

    first, last = sent(script, pieces=True)
    assert texts([first]) == ["a"] and b"error" in last and b"[DONE]" not in last
