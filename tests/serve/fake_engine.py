"""An engine whose answers a test writes itself, behind the real HTTP server."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec.structs import replace

from glm_portable import pocket
from glm_portable.config import ModelConfig
from glm_portable.engine.engine import Engine
from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, SamplingParams, TokenLogprob
from glm_portable.errors import UsageError
from glm_portable.serve.chat import ChatTemplate, detect_format
from glm_portable.serve.server import Server, bind
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from glm_portable.tokenizer import Tokenizer

T = TypeVar("T")

WINDOW = 512
WAIT_S = 20.0
"""Patience of a test for something that must happen; never how long it takes."""

TOKENIZER = Tokenizer.load(pocket.path(), ModelConfig.load(pocket.path()))
CHAT = ChatTemplate.load(pocket.path(), TOKENIZER)


@dataclass
class Submitted:
    """One request as the engine saw it; the test may send its deltas by hand."""

    prompt_ids: list[int]
    params: SamplingParams
    send: Callable[[Delta], None]
    name: str = ""
    priority: int = 0
    cache_salt: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def prompt(self) -> str:
        pieces = map(TOKENIZER.token_bytes, self.prompt_ids)
        return b"".join(pieces).decode()


Script = Callable[[Submitted], Sequence[Delta]]


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the server does after a client has got its last byte."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def says(text: str, reason: Any = "stop", size: int = 1) -> list[Delta]:
    """Deltas that generate `text`, `size` tokens each, and then an end-of-text token."""
    ids = TOKENIZER.encode(text)
    stream = TOKENIZER.stream()
    cuts = [ids[i : i + size] for i in range(0, len(ids), size)]
    deltas = [Delta(tuple(cut), stream.add(cut), logprobs_of(cut)) for cut in cuts]
    end = TOKENIZER.eos_token_id[:1]
    return [*deltas, Delta(end, "", logprobs_of(end), finish_reason=reason)]


def logprobs_of(ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(i, -0.5, ((i, -0.5), (i + 1, -float("inf")))) for i in ids)


def scores_of(prompt_ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    """Of the tokens from the second on; an even one is the most probable, an odd one the second."""
    found = []
    for i in prompt_ids[1:]:
        own, other = (i, -0.25 - i / 1024), (i ^ 1, -0.25 - (i ^ 1) / 1024)
        best, second = (own, other) if i % 2 == 0 else (other, own)
        found.append(TokenLogprob(i, own[1], (best, second), 1 + i % 2))
    return tuple(found)


def on_the_loop(receive: Callable[[T], None]) -> Callable[[T], None]:
    """For a thread that generates: has the running loop call `receive`."""
    loop = asyncio.get_running_loop()

    def send(item: T) -> None:
        with suppress(RuntimeError):  # the server has ended, so nobody is waiting
            loop.call_soon_threadsafe(receive, item)

    return send


class Threaded:
    """An engine that generates on a thread of this process, as the server wants to have it."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.cancel, self.stats = engine, engine.cancel, engine.stats

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        **options: Any,
    ) -> Any:
        return self._engine.submit(prompt_ids, params, on_the_loop(on_delta), **options)

    def examine(self, on_result: Callable[[str | None], None]) -> None:
        self._engine.examine(on_the_loop(on_result))


class FakeEngine:
    """Answers each request with what `script` returns for it, from a thread of its own."""

    def __init__(self) -> None:
        self.stats_now = EngineStats(
            running=1,
            waiting=0,
            pages_used=3,
            pages_total=4,
            prompt_tokens=50,
            generation_tokens=60,
            preemptions=7,
            steps=80,
            failed_steps=9,
            healthy=True,
            prefix_cache_queries=45,
            prefix_cache_hits=35,
            num_drafts=10,
            num_draft_tokens=20,
            num_accepted_tokens=15,
            accepted_by_position=(9, 6),
        )
        self.script: Script = lambda request: says("Hello there.")
        self.requests: list[Submitted] = []
        self.fault: str | None = None
        self._arrived = threading.Condition()

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
        if len(prompt_ids) >= WINDOW:
            raise UsageError(f"This model's maximum context length is {WINDOW} tokens, not more.")
        send = on_the_loop(on_delta)
        request = Submitted(list(prompt_ids), params, send, name, priority, cache_salt)
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
            number = len(self.requests) - 1
        threading.Thread(target=self._answer, args=[request], daemon=True).start()
        return number

    def examine(self, on_result: Callable[[str | None], None]) -> None:
        asyncio.get_running_loop().call_soon(on_result, self.fault)

    def cancel(self, request_id: int) -> None:
        self.requests[request_id].cancelled.set()

    def stats(self) -> EngineStats:
        return self.stats_now

    def _answer(self, request: Submitted) -> None:
        scores = scores_of(request.prompt_ids) if request.params.prompt_logprobs is not None else ()
        # Only where asked for, as from the engine: without them the server takes shorter ways.
        asked = request.params.logprobs is not None
        for delta in self.script(request):
            tokens = delta.logprobs if asked else ()
            request.send(replace(delta, logprobs=tokens, prompt_logprobs=scores))
            scores = ()

    def wait_for(self, count: int) -> list[Submitted]:
        """The first `count` requests, as soon as they are there."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, WAIT_S)
            return self.requests[:count]


@dataclass
class Running:
    """A server under test."""

    url: str
    engine: FakeEngine
    service: Service
    server: Server
    thread: threading.Thread

    def join(self) -> None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def fake_service(engine: FakeEngine, settings: ServerSettings) -> Service:
    return Service(engine, CHAT, TOKENIZER, detect_format(CHAT), WINDOW, settings)


@contextmanager
def serving(
    service: Service, sock: socket.socket | None = None
) -> Iterator[tuple[str, Server, threading.Thread]]:
    """Serve on `sock` or a free port in a thread; leaving the block drains and ends it."""
    ready = threading.Event()
    urls: list[str] = []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    server = Server(service, on_ready)
    sock = sock or bind(service.settings)
    sock.listen()
    thread = threading.Thread(target=server.run, args=[[sock]], daemon=True)
    thread.start()
    assert ready.wait(WAIT_S)
    try:
        yield urls[0], server, thread
    finally:
        service.settings = settings_for_the_end(service.settings)
        server.drain()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def settings_for_the_end(settings: ServerSettings) -> ServerSettings:
    """A test that left requests running does not wait for them."""
    return ServerSettings(**{**vars(settings), "drain_grace_s": 0.0})


@contextmanager
def fake_server(**settings: Any) -> Iterator[Running]:
    """The HTTP server over a fake engine."""
    names = {"port": 0, "served_model_names": ("pocket", "zai/pocket")}
    engine = FakeEngine()
    service = fake_service(engine, ServerSettings(**{**names, **settings}))
    with serving(service) as (url, server, thread):
        yield Running(url, engine, service, server, thread)
