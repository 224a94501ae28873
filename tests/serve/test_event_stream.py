"""Which events share a write: those that came together, and none that could have gone before."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.serve.generation import Generation, Job
from glm_portable.serve.streaming import _MOST_TOGETHER, EventStream


class Scripted:
    """An engine whose deltas the test sends."""

    def __init__(self) -> None:
        self.send: Callable[[Delta], None] = lambda delta: None

    def submit(self, ids: Sequence[int], params: SamplingParams, on_delta: Any, **_: Any) -> int:
        self.send = on_delta
        return 0

    def cancel(self, request_id: int) -> None:
        pass


def token(text: str, reason: Any = None) -> Delta:
    return Delta((1,), text, finish_reason=reason)


def sent(script: Callable[[Scripted, Callable[[int], Any]], Any]) -> list[bytes]:
    """The bodies that a stream of the script's deltas is sent in."""

    async def run() -> list[bytes]:
        engine, bodies, grew = Scripted(), list[bytes](), asyncio.Condition()
        generation = Generation(
            engine,  # type: ignore[arg-type]  # without stats, which no stream asks for
            [Job([1], SamplingParams())],
            set(),
        )
        generation.start()

        async def chunks() -> Any:
            while await generation.wait():
                for _, delta in generation.arrived():
                    if delta.text:  # others are held back, as a part of a tool call is
                        yield {"text": delta.text}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                async with grew:
                    bodies.append(message["body"])
                    grew.notify_all()

        async def until(count: int) -> None:
            async with grew:
                await grew.wait_for(lambda: len(bodies) >= count)

        async def receive() -> Any:
            await asyncio.Event().wait()

        stream = asyncio.create_task(EventStream(generation, chunks())({}, receive, send))
        await script(engine, until)
        await stream
        return bodies

    return asyncio.run(run())


def events(body: bytes) -> int:
    return body.count(b"data:")


def test_events_that_came_together_share_a_write() -> None:
    async def script(engine: Scripted, until: Callable[[int], Any]) -> None:
        for word in ("a", "b", "c"):
            engine.send(token(word))
        engine.send(token("d", "stop"))

    [body] = sent(script)
    assert events(body) == 5 and body.endswith(b"data: [DONE]\n\n")


def test_an_event_never_waits_for_the_next_delta() -> None:
    async def script(engine: Scripted, until: Callable[[int], Any]) -> None:
        engine.send(token("a"))
        await until(1)
        engine.send(token("b"))
        engine.send(token(""))  # nothing comes of it
        await until(2)
        engine.send(token("c", "stop"))

    assert [events(body) for body in sent(script)] == [1, 1, 2]


def test_a_long_answer_that_is_there_already_is_sent_in_parts() -> None:
    async def script(engine: Scripted, until: Callable[[int], Any]) -> None:
        for _ in range(2 * _MOST_TOGETHER):
            engine.send(token("a"))
        engine.send(token("", "stop"))

    assert [events(body) for body in sent(script)] == [_MOST_TOGETHER, _MOST_TOGETHER, 1]
