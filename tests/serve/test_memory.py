"""After large requests the allocator is asked to give back what is free."""

import asyncio
import platform
import threading

import httpx
import pytest

from glm_portable.serve import memory
from glm_portable.serve.exchange import Exchange
from glm_portable.serve.memory import LARGE, Trimming, trimmer
from tests.serve.fake_engine import eventually, fake_server

CHAT = "/v1/chat/completions"


def threads_after(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Those that trimmed after requests with such bodies, of which 0 is a pause."""
    monkeypatch.setattr(memory, "DELAY_S", 0)
    seen: list[threading.Thread] = []

    async def serve() -> None:
        trimming = Trimming(lambda: seen.append(threading.current_thread()))
        for size in [*sizes, 0]:
            trimming.after(Exchange("a", "POST", CHAT, body_bytes=size))
            if size == 0:
                for _ in range(3):  # turns of the loop: what is due now has been started then
                    await asyncio.sleep(0)
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(serve())
    return seen


@pytest.mark.parametrize(
    ("sizes", "times"),
    [
        ([1, LARGE - 1], 0),
        ([LARGE], 1),
        ([LARGE, 1, 3 * LARGE, LARGE], 1),
        ([LARGE, LARGE, 0, LARGE], 2),
    ],
)
def test_once_after_however_many_large_requests(
    sizes: list[int], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threads_after(sizes, monkeypatch)
    assert len(seen) == times
    assert threading.current_thread() not in seen


def test_bodies_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(Trimming, "after", lambda self, exchange: sizes.append(exchange.body_bytes))
    with fake_server(max_body_bytes=1000) as running:
        httpx.get(f"{running.url}/health")
        for size, status in ((500, 400), (1000, 400), (1001, 413)):
            chunks = iter([b"[" * (size - 10), b"[" * 10])  # without a length in its head
            headers = {"content-type": "application/json"}
            answer = httpx.post(running.url + CHAT, content=chunks, headers=headers)
            assert answer.status_code == status
        eventually(lambda: len(sizes) == 4)
    assert sizes == [0, 500, 1000, 1001]


def test_glibc_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = memory._none
    assert (trimmer() is nothing) == (platform.libc_ver()[0] != "glibc")
    trimmer()()
    monkeypatch.setattr("sys.platform", "darwin")
    assert trimmer() is nothing
