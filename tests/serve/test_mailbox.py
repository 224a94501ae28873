"""What the engine's thread puts in reaches the loop whole, in order, and with few wake-ups."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from glm_portable.serve.mailbox import Mailbox


class CountingLoop:
    """Counts its wake-ups, and runs what it was woken for when the test says so."""

    def __init__(self) -> None:
        self.woken: list[Callable[[], None]] = []

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.woken.append(callback)


def box() -> tuple[CountingLoop, Any]:
    loop = CountingLoop()
    return loop, Mailbox(loop)  # type: ignore[arg-type]  # it calls this one method


def test_one_wake_up_serves_all_that_waits() -> None:
    loop, mailbox = box()
    got: list[int] = []
    for number in range(100):
        mailbox.put(got.append, number)
    assert len(loop.woken) == 1 and got == []
    loop.woken.pop()()
    assert got == list(range(100))
    mailbox.put(got.append, 100)
    assert len(loop.woken) == 1


def test_what_is_put_during_delivery_wakes_the_loop_again() -> None:
    loop, mailbox = box()
    got: list[str] = []

    def receive(item: str) -> None:
        got.append(item)
        mailbox.put(got.append, "later")

    mailbox.put(receive, "first")
    loop.woken.pop()()
    assert got == ["first"] and len(loop.woken) == 1
    loop.woken.pop()()
    assert got == ["first", "later"]


def test_nothing_is_lost_between_threads() -> None:
    count, got = 20_000, list[tuple[int, int]]()

    async def run() -> None:
        mailbox, done = Mailbox(asyncio.get_running_loop()), asyncio.Event()

        def send(thread: int) -> None:
            for number in range(count):
                mailbox.put(got.append, (thread, number))
            mailbox.put(end, thread)

        def end(thread: int) -> None:
            ended.add(thread)
            if len(ended) == 2:
                done.set()

        ended: set[int] = set()
        threads = [threading.Thread(target=send, args=[t]) for t in range(2)]
        for thread in threads:
            thread.start()
        await done.wait()
        for thread in threads:
            thread.join()

    asyncio.run(run())
    for thread in range(2):
        assert [number for t, number in got if t == thread] == list(range(count))


def test_a_closed_loop_is_no_error() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Mailbox(loop).put(print, "nobody")
