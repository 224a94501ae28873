"""The engine behind the wire: what a request gets, how it ends, and what both sides know of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from socket import SHUT_RDWR, socketpair
from typing import Any

import pytest
from msgspec import structs
from torch import Tensor

from glm_portable.engine.engine import Engine, EngineDraining
from glm_portable.engine.grammar import Grammar, GrammarError, Vocabulary
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step
from glm_portable.serve.remote import client as clients
from glm_portable.serve.remote import wire
from glm_portable.serve.remote.client import ENDED, EngineClient
from glm_portable.serve.remote.grammars import Grammars
from glm_portable.serve.remote.host import EngineHost
from glm_portable.serve.remote.outbox import Outbox
from glm_portable.serve.remote.wire import Deltas, FromEngine, Submit, pack, receive
from glm_portable.serve.request_metrics import RequestMetrics
from tests.engine.fake_model import VOCAB, FakeModel, Words, answer, limits
from tests.engine.test_grammar import LISTS, WORDS
from tests.serve.remote.pair import WAIT_S, client_of, hosted

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
ENDLESS = replace(GREEDY, max_tokens=None)
KNOWN = 'start: "1" "2"'
"""A grammar of two tokens."""


class Gated(FakeModel):
    """Waits before each step until the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        self.reached.set()
        assert self.gate.wait(WAIT_S)
        return super().forward(ids_T, step, caches)


class Stream:
    """Collects the deltas of one request on the event loop."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.began, self.ended = asyncio.Event(), asyncio.Event()

    def __call__(self, delta: Delta) -> None:
        assert not self.ended.is_set(), "a delta after the last one"
        self.deltas.append(delta)
        self.began.set()
        if delta.finish_reason is not None:
            self.ended.set()

    async def wait(self) -> Delta:
        await asyncio.wait_for(self.ended.wait(), WAIT_S)
        return self.deltas[-1]

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]


@asynccontextmanager
async def connected(
    model: FakeModel | None = None, vocabulary: Any = lambda: WORDS
) -> AsyncIterator[tuple[EngineClient, Engine]]:
    observed = RequestMetrics(64)
    with (
        Engine(model or FakeModel(), Words(), limits(), observer=observed) as engine,
        hosted(engine, vocabulary, observed) as sock,
    ):
        client = client_of(engine, sock, VOCAB)
        await client.connect()
        try:
            yield client, engine
        finally:
            if isinstance(model, Gated):
                model.gate.set()
            await client.close()


async def until(client: EngineClient, **wanted: int) -> None:
    """Wait for what the engine tells after its next step."""

    async def poll() -> None:
        while any(getattr(client.stats(), name) != value for name, value in wanted.items()):
            await asyncio.sleep(0)

    await asyncio.wait_for(poll(), WAIT_S)


def test_an_answer_comes_as_from_the_engine_itself() -> None:
    asked = replace(GREEDY, logprobs=2, prompt_logprobs=1)

    async def over_the_wire() -> list[Delta]:
        async with connected() as (client, _):
            stream = Stream()
            client.submit([1, 2, 3], asked, stream)
            await stream.wait()
            return stream.deltas

    found = asyncio.run(over_the_wire())
    with Engine(FakeModel(), Words(), limits()) as engine:
        deltas: list[Delta] = []
        ended = threading.Event()

        def on_delta(delta: Delta) -> None:
            deltas.append(delta)
            if delta.finish_reason is not None:
                ended.set()

        engine.submit([1, 2, 3], asked, on_delta)
        assert ended.wait(WAIT_S)
    assert [t for d in found for t in d.token_ids] == answer([1, 2, 3], 5, eos=None)
    times = found[-1].timeline
    assert times is not None and times.scheduled is not None and times.last_token is not None
    assert times.arrived <= times.scheduled <= times.last_token
    assert [structs.replace(d, timeline=None) for d in found] == [
        structs.replace(d, timeline=None) for d in deltas
    ]


def test_requests_are_not_mixed_up() -> None:
    async def run() -> None:
        async with connected() as (client, _):
            streams = [Stream() for _ in range(20)]
            for n, stream in enumerate(streams):
                client.submit([n, 5, n % 3], GREEDY, stream)
            for n, stream in enumerate(streams):
                await stream.wait()
                assert stream.tokens == answer([n, 5, n % 3], 5, eos=None)

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_step_is_one_message() -> None:
    """Of all its requests, when the step is over."""
    model = Gated()
    model.gate.clear()
    ours, theirs = socketpair()
    with ours, theirs, Engine(model, Words(), limits()) as engine:
        host = EngineHost(engine, theirs, Grammars(lambda: WORDS), RequestMetrics(64))
        thread = threading.Thread(target=host.run, daemon=True)
        thread.start()
        for number in range(4):
            ours.sendall(pack(Submit.of(number, [number, 1], GREEDY, "", 0, "")))
        assert model.reached.wait(WAIT_S)
        while engine.stats().running + engine.stats().waiting < 4:
            pass  # the host reads them while the first step waits
        model.gate.set()
        messages: list[Deltas] = []
        while sum(d.finish_reason is not None for m in messages for d in m.deltas) < 4:
            messages.append(receive(ours, FromEngine))
        ours.shutdown(SHUT_RDWR)
        thread.join(WAIT_S)
    sizes = [len(m.numbers) for m in messages]
    assert 4 in sizes and all(len(set(m.numbers)) == len(m.numbers) for m in messages)
    assert len([size for size in sizes if size]) <= 6  # five tokens each, of which some one later


REFUSED: list[tuple[list[int], SamplingParams]] = [
    ([], GREEDY),
    ([VOCAB], GREEDY),
    ([-1], GREEDY),
    ([1] * 64, GREEDY),
    ([1], replace(GREEDY, temperature=-1.0)),
    ([1], replace(GREEDY, top_p=float("nan"))),
    ([1], replace(GREEDY, stop=("",))),
    ([1], replace(GREEDY, max_tokens=0)),
    ([1], replace(GREEDY, logit_bias={VOCAB: 1.0})),
    ([1], replace(GREEDY, prompt_logprobs=-1)),
    ([1] * 40, ENDLESS),
]


@pytest.mark.parametrize(("prompt", "params"), REFUSED)
def test_what_the_engine_refuses_is_refused_in_its_words(
    prompt: list[int], params: SamplingParams
) -> None:
    few = limits(num_pages=12)
    with Engine(FakeModel(), Words(), few) as engine, hosted(engine, lambda: WORDS) as sock:
        with pytest.raises(UsageError) as theirs:
            engine.submit(prompt, params, lambda delta: None)

        async def run() -> str:
            client = client_of(engine, sock, VOCAB)
            await client.connect()
            with pytest.raises(UsageError) as ours:
                client.submit(prompt, params, lambda delta: None)
            assert client.stats().waiting == 0
            await client.close()
            return str(ours.value)

        assert asyncio.run(run()) == str(theirs.value)


def test_what_the_client_cannot_know_ends_the_request_with_its_reason() -> None:
    async def run() -> None:
        async with connected() as (client, engine):
            engine.drain(0)
            stream = Stream()
            client.submit([1], GREEDY, stream)
            last = await stream.wait()
            assert last.finish_reason == "error" and "shutting down" in (last.error or "")
            assert client.stats().waiting == 0

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_request_that_the_engine_fails_to_begin_ends_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with connected() as (client, engine):
            broken, other = Stream(), Stream()
            with monkeypatch.context() as patch:
                patch.setattr(engine, "submit", None)
                client.submit([1], GREEDY, broken)
                assert "log has the reason" in ((await broken.wait()).error or "")
            client.submit([2], GREEDY, other)
            assert (await other.wait()).finish_reason == "length"

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_cancelled_request_is_freed_and_heard_of_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cancelled = Gated(), threading.Event()
    model.gate.clear()

    async def run() -> None:
        async with connected(model) as (client, engine):
            cancel = engine.cancel

            def spy(request_id: str) -> None:
                cancel(request_id)
                cancelled.set()

            monkeypatch.setattr(engine, "cancel", spy)
            stream, other = Stream(), Stream()
            number = client.submit([1, 2], ENDLESS, stream)
            assert await asyncio.to_thread(model.reached.wait, WAIT_S)
            client.cancel(number)
            assert await asyncio.to_thread(cancelled.wait, WAIT_S)
            model.gate.set()
            client.submit([3], GREEDY, other)
            await other.wait()
            await until(client, running=0, waiting=0, pages_used=0, generation_tokens=6)
            assert stream.deltas == []
            cancelled.clear()
            for ended in (number, number + 1):
                client.cancel(ended)
            await client.observe()  # behind them
            assert not cancelled.is_set()

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_requests_on_their_way_are_waiting() -> None:
    model = Gated()
    model.gate.clear()

    async def run() -> None:
        async with connected(model) as (client, _):
            streams = [Stream() for _ in range(3)]
            for stream in streams:
                client.submit([1, 2], GREEDY, stream)
            assert client.stats().waiting == 3
            model.gate.set()
            for stream in streams:
                await stream.wait()
            await until(client, waiting=0, running=0, generation_tokens=15)

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_name_priority_and_salt_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with connected() as (client, engine):
            seen: dict[str, Any] = {}
            submit = engine.submit

            def spy(*arguments: Any, **options: Any) -> str:
                seen.update(options)
                return submit(*arguments, **options)

            monkeypatch.setattr(engine, "submit", spy)
            stream = Stream()
            client.submit([1], GREEDY, stream, name="me", priority=-3, cache_salt="\ud800")
            await stream.wait()
            assert seen == {"name": "me", "priority": -3, "cache_salt": "\ud800"}

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_receiver_that_raises_gives_up_its_own_request_alone() -> None:
    def broken(delta: Delta) -> None:
        raise RuntimeError("broken")

    async def run() -> None:
        async with connected() as (client, _):
            stream = Stream()
            client.submit([1, 2], ENDLESS, broken)
            client.submit([3], GREEDY, stream)
            assert (await stream.wait()).finish_reason == "length"
            await until(client, running=0, waiting=0)
            assert not client._receivers

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_what_the_engine_observed_is_fetched() -> None:
    async def run() -> None:
        async with connected() as (client, _):
            stream = Stream()
            client.submit([1, 2, 3], GREEDY, stream)
            await stream.wait()
            assert client.observed.state.ended["length"] == 0
            await asyncio.gather(client.observe(), client.observe())
            assert client.observed.state.ended["length"] == 1
            await client.observe()
            families = {f.name: f for f in client.observed.families({})}
            found = families["vllm:request_prompt_tokens"].samples
            assert [s.value for s in found if s.name.endswith("_sum")] == [3]

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_an_engine_that_does_not_say_what_it_saw_holds_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "PATIENCE_S", 0.0)
    ours, theirs = socketpair()

    async def run() -> None:
        with ours, theirs, Engine(FakeModel(), Words(), limits()) as engine:
            client = client_of(engine, ours, VOCAB)
            await client.connect()
            await client.observe()
            assert not client.ended
            await client.close()

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def grammar_of(text: str) -> Grammar:
    return WORDS.compile(text)


def test_a_grammar_travels_as_its_text() -> None:
    asked = SamplingParams(temperature=1.0, seed=3, max_tokens=20, grammar=grammar_of(LISTS))
    compiled: list[str] = []

    class Counting(Vocabulary):
        def compile(self, text: str) -> Grammar:
            compiled.append(text)
            return super().compile(text)

    def vocabulary() -> Vocabulary:
        return Counting(WORDS.table)

    async def run() -> list[Stream]:
        async with connected(vocabulary=vocabulary) as (client, _):
            streams = [Stream(), Stream()]
            for stream in streams:
                client.submit([4, 5], asked, stream)
                await stream.wait()
            return streams

    for stream in asyncio.run(run()):
        assert stream.tokens[0] == 1 and set(stream.tokens[1:-1]) <= {1, 2, 3}, stream.tokens
        assert stream.deltas[-1].finish_reason == "stop"
    assert compiled == [LISTS]  # the second time it was kept


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(GrammarError("too large"), "too complex to enforce"), (MemoryError(), "cannot be turned")],
)
def test_a_grammar_that_cannot_be_compiled_ends_its_request(
    error: Exception, sentence: str
) -> None:
    class Refusing(Vocabulary):
        def compile(self, text: str) -> Grammar:
            raise error

    async def run() -> None:
        async with connected(vocabulary=lambda: Refusing(WORDS.table)) as (client, _):
            stream = Stream()
            client.submit([1], replace(GREEDY, grammar=grammar_of(LISTS)), stream)
            last = await stream.wait()
            assert last.finish_reason == "error" and sentence in (last.error or "")
            assert client.stats().waiting == 0

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_grammar_being_compiled_holds_nobody_and_can_be_cancelled() -> None:
    compiling, go_on = threading.Event(), threading.Event()

    class Slow(Vocabulary):
        def compile(self, text: str) -> Grammar:
            if text == LISTS:
                compiling.set()
                assert go_on.wait(WAIT_S)
            return super().compile(text)

    async def run() -> None:
        async with connected(vocabulary=lambda: Slow(WORDS.table)) as (client, engine):
            held, other, first = Stream(), Stream(), Stream()
            client.submit([5], replace(GREEDY, grammar=grammar_of(KNOWN)), first)
            await first.wait()
            asked = replace(GREEDY, grammar=grammar_of(LISTS))
            number = client.submit([1], asked, held)
            client.submit([2], GREEDY, other)
            await other.wait()
            assert await asyncio.to_thread(compiling.wait, WAIT_S)
            assert client.stats().waiting == 1
            client.cancel(number)
            last = Stream()
            client.submit([3], replace(GREEDY, grammar=grammar_of(KNOWN)), last)  # behind it
            await last.wait()
            go_on.set()
            after = Stream()
            client.submit([4], asked, after)
            await after.wait()
            await until(client, waiting=0, running=0)
            assert held.deltas == []
            sizes = [len(stream.tokens) for stream in (first, other, last, after)]
            assert engine.stats().generation_tokens == sum(sizes)

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_an_engine_that_goes_ends_every_request_with_an_error() -> None:
    ours, theirs = socketpair()

    async def run() -> None:
        with ours, theirs, Engine(FakeModel(), Words(), limits()) as engine:
            client = client_of(engine, ours, VOCAB)
            await client.connect()
            gone = asyncio.Event()
            client.on_end = gone.set
            streams = [Stream(), Stream()]
            for stream in streams:
                client.submit([1], GREEDY, stream)
            watching = asyncio.create_task(client.observe())
            await asyncio.sleep(0)
            assert client.stats().healthy and not client.ended
            theirs.close()
            await asyncio.wait_for(gone.wait(), WAIT_S)
            for stream in streams:
                assert await stream.wait() == Delta(finish_reason="error", error=ENDED)
            await asyncio.wait_for(watching, WAIT_S)
            assert client.ended and not client.stats().healthy
            with pytest.raises(EngineDraining, match="engine has ended"):
                client.submit([1], GREEDY, Stream())
            client.cancel(0)
            await client.observe()
            await client.close()

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_an_end_that_was_asked_for_is_no_failure() -> None:
    async def run() -> None:
        async with connected() as (client, _):
            ends: list[str] = []
            client.on_end = lambda: ends.append("end")
            await client.close()
            assert ends == [] and not client.ended

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_an_engine_that_talks_nonsense_is_given_up() -> None:
    ours, theirs = socketpair()

    async def run() -> None:
        with ours, theirs, Engine(FakeModel(), Words(), limits()) as engine:
            client = client_of(engine, ours, VOCAB)
            await client.connect()
            stream = Stream()
            client.submit([1], GREEDY, stream)
            theirs.sendall(b"\x00\x00\x00\x01\xc1")
            assert (await stream.wait()).error == ENDED
            assert client.ended

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_delta_that_is_too_large_to_be_sent_ends_its_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with connected() as (client, engine):
            cancelled: list[str] = []
            monkeypatch.setattr(engine, "cancel", cancelled.append)
            large, small = Stream(), Stream()
            asked = replace(GREEDY, logprobs=VOCAB)
            monkeypatch.setattr(wire, "MAX_BYTES", 700)
            client.submit([1], asked, large)
            client.submit([2], GREEDY, small)
            assert "too large" in ((await large.wait()).error or "")
            await small.wait()
            assert small.tokens == answer([2], 5, eos=None)
            assert set(cancelled) == {"0"}

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_server_that_does_not_read_holds_nobody() -> None:
    """Far more than a socket buffers is taken at once, and arrives whole and in order."""
    ours, theirs = socketpair()
    with ours, theirs:
        outbox = Outbox(theirs)
        pieces = [bytes([n]) * 100_000 for n in range(100)]
        for piece in pieces:
            outbox.send(piece)
        found = bytearray()
        while len(found) < 10_000_000:
            found += ours.recv(2**20)
        assert found == b"".join(pieces)
        outbox.send(b"more")
        assert ours.recv(9) == b"more"


def test_nothing_overtakes_what_waits() -> None:
    """Not even when the socket would take it."""
    written: list[bytes] = []
    sending, go_on, all_written = (threading.Event() for _ in range(3))

    class Full:
        """Takes nothing at once the first time, and anything later."""

        def send(self, data: bytes, flags: int) -> int:
            if not sending.is_set():
                raise BlockingIOError
            written.append(data)
            return len(data)

        def sendall(self, data: bytes) -> None:
            sending.set()
            assert go_on.wait(WAIT_S)
            written.append(bytes(data))
            if len(written) == 2:
                all_written.set()

    outbox = Outbox(Full())  # type: ignore[arg-type]  # all that it needs of a socket
    outbox.send(b"first")
    assert sending.wait(WAIT_S)
    outbox.send(b"second")
    assert not written
    go_on.set()
    assert all_written.wait(WAIT_S)
    assert written == [b"first", b"second"]


def test_what_is_for_a_server_that_has_gone_is_dropped() -> None:
    ours, theirs = socketpair()
    with ours, theirs:
        outbox = Outbox(theirs)
        for _ in range(10):
            outbox.send(b"x" * 100_000)  # some of it waits
        ours.close()
        with outbox._changed:
            assert outbox._changed.wait_for(lambda: outbox._gone, WAIT_S)
        outbox.send(b"more")
        assert not outbox._waiting
