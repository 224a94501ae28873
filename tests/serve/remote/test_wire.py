"""Every field of every message arrives as it was sent, in whatever pieces; nothing else does."""

from dataclasses import fields
from socket import socketpair
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from msgspec.structs import replace

from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, SamplingParams, Timeline, TokenLogprob
from glm_portable.serve.remote import wire
from glm_portable.serve.remote.wire import (
    Cancel,
    Deltas,
    FromEngine,
    Observe,
    Report,
    Submit,
    ToEngine,
    Unpacker,
    WireError,
    pack,
    receive,
)
from glm_portable.serve.request_metrics import Observed, RequestMetrics
from tests.serve.fake_engine import FakeEngine

ids = some.integers(0, 2**31 - 1)
counts = some.integers(0, 2**62)
numbers = some.floats(allow_nan=False)  # -inf is the log probability of what cannot come
unicode = some.text()
tops = some.lists(some.tuples(ids, numbers), max_size=3).map(tuple)
logprobs = some.builds(TokenLogprob, ids, numbers, tops, some.none() | some.integers(1, 200_000))
several = some.lists(logprobs, max_size=3).map(tuple)
times = some.builds(Timeline, *[some.floats(0, 1e9)] * 4)
leaf = some.builds(
    Delta,
    token_ids=some.lists(ids, max_size=3).map(tuple),
    text=unicode,
    logprobs=several,
    finish_reason=some.sampled_from([None, "stop", "length", "abort", "error"]),
    stop_reason=some.none() | unicode | ids,
    error=some.none() | unicode,
    num_cached_tokens=some.none() | counts,
    prompt_logprobs=several,
    timeline=some.none() | times,
)
deltas = some.builds(
    lambda whole, parts: replace(whole, parts=tuple(parts)), leaf, some.lists(leaf, max_size=3)
)
stats = some.builds(
    EngineStats,
    **{f.name: counts for f in fields(EngineStats) if f.type is int},
    healthy=some.booleans(),
    accepted_by_position=some.lists(counts, max_size=5).map(tuple),
)
json_text = some.text(some.characters())  # JSON can spell lone surrogates
params = some.builds(
    SamplingParams,
    **{
        name: numbers
        for name in (
            *("temperature", "top_p", "min_p", "repetition_penalty"),
            *("presence_penalty", "frequency_penalty"),
        )
    },
    top_k=counts,
    logit_bias=some.dictionaries(ids, numbers, max_size=3),
    seed=some.none() | some.integers(-(2**63), 2**63 - 1),
    max_tokens=some.none() | counts,
    min_tokens=counts,
    stop=some.lists(json_text | some.just("\ud800"), max_size=3).map(tuple),
    stop_token_ids=some.lists(ids, max_size=3).map(tuple),
    ignore_eos=some.booleans(),
    logprobs=some.none() | counts,
    prompt_logprobs=some.none() | counts,
)


def through(message: Any, kinds: Any) -> Any:
    [found] = Unpacker(kinds).feed(pack(message))
    return found


# Making examples takes long where the machine is busy; that says nothing of what is tested.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(some.lists(some.tuples(counts, deltas), max_size=3), counts, stats)
def test_deltas(pairs: list[tuple[int, Delta]], received: int, now: EngineStats) -> None:
    message = Deltas(received, now, [n for n, _ in pairs], [delta for _, delta in pairs])
    found = through(message, FromEngine)
    assert found == message
    assert [type(delta) for delta in found.deltas] == [Delta] * len(pairs)
    assert all(type(delta.token_ids) is type(delta.parts) is tuple for delta in found.deltas)


@patient
@given(params, some.lists(ids, max_size=5), unicode, some.integers(-(2**31), 2**31), json_text)
def test_submit(
    asked: SamplingParams, prompt: list[int], name: str, priority: int, salt: str
) -> None:
    found = through(Submit.of(3, prompt, asked, name, priority, salt), ToEngine)
    assert found.sampling() == asked
    assert type(found.sampling().stop) is type(found.sampling().stop_token_ids) is tuple
    assert (found.number, found.prompt_ids, found.name) == (3, prompt, name)
    assert (found.priority, found.salt, found.grammar) == (priority, salt, None)


def test_the_strategies_know_every_field() -> None:
    """A field that is new must be sent, too."""
    assert set(Delta.__struct_fields__) == {
        *("token_ids", "text", "logprobs", "finish_reason", "stop_reason", "error"),
        *("num_cached_tokens", "prompt_logprobs", "parts", "timeline"),
    }
    known = {*wire._SAME, "stop", "grammar"}
    assert known == {f.name for f in fields(SamplingParams)} and len(known) == 17


def test_what_was_observed() -> None:
    ours, theirs = RequestMetrics(1000), RequestMetrics(1000)
    ours.on_step(5)
    ours.on_tokens([0.5], [0.25, 0.25])
    theirs.state = through(Report(ours.state), FromEngine).observed
    assert theirs.state == ours.state
    assert [f.samples for f in theirs.families({"a": "b"})] == [
        f.samples for f in ours.families({"a": "b"})
    ]


@patient
@given(some.lists(some.integers(1, 9), min_size=1))
def test_messages_come_in_any_pieces(sizes: list[int]) -> None:
    messages = [Cancel(7), Observe(), Cancel(2**40)]
    data, unpacker = b"".join(map(pack, messages)), Unpacker(ToEngine)
    found: list[Any] = []
    for size in sizes:
        found += unpacker.feed(data[:size])
        data = data[size:]
    found += unpacker.feed(data)
    assert found == messages


def test_one_message_of_a_blocking_socket() -> None:
    """No byte of the next one is taken."""
    ours, theirs = socketpair()
    with ours, theirs:
        theirs.sendall(pack(Cancel(1)) + pack(Cancel(2)))
        assert receive(ours, ToEngine) == Cancel(1)
        theirs.close()
        assert receive(ours, ToEngine) == Cancel(2)
        assert receive(ours, ToEngine) is None


def test_a_message_that_breaks_off_is_none() -> None:
    ours, theirs = socketpair()
    with ours, theirs:
        theirs.sendall(pack(Cancel(1))[:-1])
        theirs.close()
        assert receive(ours, ToEngine) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x01\xc1",  # never used by MessagePack
        pack(["cancel", "seven"]),
        pack(["exec", "import os"]),
        pack(Observed({}, [])),
        pack(Deltas(0, FakeEngine().stats(), [], [])),  # goes the other way
        pack(["submit", 1]),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="cannot be read"):
        list(Unpacker(ToEngine).feed(data))


def test_the_length_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BYTES", 9)
    with pytest.raises(WireError, match="too large"):
        pack(["0123456789"])
    long = b"\x00\x00\x00\x0a"  # refused before it has come
    with pytest.raises(WireError, match="10 bytes"):
        list(Unpacker(ToEngine).feed(long))
    ours, theirs = socketpair()
    with ours, theirs:
        theirs.sendall(long)
        with pytest.raises(WireError, match="10 bytes"):
            receive(ours, ToEngine)
