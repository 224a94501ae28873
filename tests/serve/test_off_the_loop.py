"""Long prompts are parsed, rendered and tokenised on other threads than the one that streams.

Each part notes the thread it ran on; nothing is timed.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from glm_portable.serve.server import WORKERS
from glm_portable.tokenizer import Tokenizer
from tests.serve.fake_engine import CHAT, TOKENIZER, WAIT_S, Running, fake_server

LONG = "a line of text, " * 600
LARGE = {"x": "a" * 2**17}
"""Ignored; it makes a body large."""
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    ("/v1/completions", {"prompt": LONG}),
    ("/tokenize", {"prompt": LONG}),
    ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 9}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": LONG}]}),
    ("/v1/responses", {"input": LONG}),
]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with fake_server() as running:
        yield running


@pytest.mark.parametrize(("path", "asked"), ASKED)
def test_a_long_prompt_is_not_worked_on_in_the_loop(
    running: Running, path: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[threading.Thread]] = {"encode": set(), "parse": set()}
    encode = Tokenizer.encode
    parse = BaseModel.model_validate_json.__func__  # type: ignore[attr-defined]  # a classmethod

    def noting_encode(self: Tokenizer, *arguments: Any) -> list[int]:
        threads["encode"].add(threading.current_thread())
        return encode(self, *arguments)

    def noting_parse(cls: Any, *arguments: Any, **options: Any) -> Any:
        threads["parse"].add(threading.current_thread())
        return parse(cls, *arguments, **options)

    monkeypatch.setattr(Tokenizer, "encode", noting_encode)
    monkeypatch.setattr(BaseModel, "model_validate_json", classmethod(noting_parse))
    httpx.post(running.url + path, json={**asked, **LARGE, "model": "pocket"}, timeout=WAIT_S)
    assert threads["encode"] and threads["parse"], "the request did not come that far"
    assert running.thread not in threads["encode"] | threads["parse"]


def test_the_template_is_rendered_on_another_thread(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    render = type(CHAT).encode

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        threads.add(threading.current_thread())
        return render(self, *arguments, **options)

    monkeypatch.setattr(type(CHAT), "encode", noting)
    httpx.post(running.url + "/v1/chat/completions", json=ASKED[0][1], timeout=WAIT_S)
    assert threads and running.thread not in threads


def test_the_tokenizer_lets_other_threads_run() -> None:
    """Its library does so for batches only. Nobody is made to give way here, so this thread gets
    on before the other has ended only if the tokenizer lets it."""
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        TOKENIZER.encode(LONG * 200)
        ended.set()

    thread, interval = threading.Thread(target=work), sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread.start()
        began.wait(WAIT_S)
        got_on = not ended.is_set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert got_on


def test_few_threads_do_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps the memory of the longest prompt that it has met."""
    threads: set[threading.Thread] = set()
    everybody = threading.Barrier(WORKERS)
    encode = Tokenizer.encode

    def together(self: Tokenizer, *arguments: Any) -> list[int]:
        threads.add(threading.current_thread())
        everybody.wait(WAIT_S)
        return encode(self, *arguments)

    monkeypatch.setattr(Tokenizer, "encode", together)

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=running.url, timeout=WAIT_S) as client:
            asking = (client.post("/tokenize", json={"prompt": "a"}) for _ in range(6 * WORKERS))
            for answer in await asyncio.gather(*asking):
                assert answer.status_code == 200

    asyncio.run(ask())
    assert len(threads) == WORKERS
