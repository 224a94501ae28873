"""Requests over real sockets to a server that sends what the test wrote; nothing is timed."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest

from glm_portable.bench.serve.connection import Address, Pool
from glm_portable.bench.serve.lag import Lag
from glm_portable.bench.serve.run import Run, Target, measure
from glm_portable.bench.serve.workload import Prompt
from glm_portable.errors import UsageError
from tests.bench.serve.double import END, HEAD, Double, chunk, serving
from tests.bench.serve.test_stream import DONE, token, usage

WHOLE = [HEAD, chunk(token("a")), chunk(token("b")), chunk(usage(2) + DONE), END]
ASKED = Prompt([1, 2, 3], 3, 2)


def ask(double: Double, count: int = 1, **options: Any) -> Run:
    async def run() -> Run:
        async with serving(double) as address:
            pool = Pool(address, clock=itertools.count(1.0).__next__)
            target = Target(pool, "/v1/completions", False, "m", **options)
            found = await measure(target, [ASKED] * count, [0.0] * count, max_concurrency=1)
            pool.close()
            return found

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_an_answer_in_pieces_of_any_size(size: int) -> None:
    stream = b"".join(WHOLE)
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    [record] = ask(Double(pieces)).records
    assert record.success and record.text == "ab" and record.output_tokens == 2, record.error


def test_an_answer_of_untold_length_ends_with_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    double = Double([head, token("a"), usage(1) + DONE], close=True)
    assert all(record.success for record in ask(double, 2).records) and double.connections == 2


def test_a_connection_that_the_server_ends_is_not_used_again() -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    double = Double([head, *WHOLE[1:]])
    assert all(record.success for record in ask(double, 2).records) and double.connections == 2


def test_one_connection_serves_many_requests_and_says_what_was_asked() -> None:
    double = Double(WHOLE)
    headers = {"authorization": "Bearer k"}
    run = ask(double, 5, headers=headers, ignore_eos=True, extra_body={"top_k": 7})
    assert all(record.success for record in run.records)
    assert (double.connections, len(double.requests)) == (1, 5)
    head, _, body = double.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1") and b"Bearer k" in head
    assert json.loads(body) == {
        "model": "m",
        "prompt": [1, 2, 3],
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "top_k": 7,
    }


def test_the_clock_is_read_when_bytes_arrive() -> None:
    double = Double([HEAD + chunk(token()) + chunk(token()) + chunk(usage(2) + DONE) + END])
    [record] = ask(double).records
    # The clock of this test counts its readings: 1 when sending, 2 when all of it came.
    assert (record.start_time, record.ttft, record.itl) == (1, 1, [0])


@pytest.mark.parametrize(
    ("pieces", "close", "reason"),
    [
        ([*WHOLE[:2]], True, "in the middle of"),
        ([], True, "closed the connection before"),
        ([HEAD, chunk(token()), END], False, "without [DONE]"),
        ([b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull"], False, "status 503: full"),
        ([b"nonsense\r\n\r\n"], False, "no HTTP"),
    ],
)
def test_failures_have_reasons(pieces: Sequence[bytes], close: bool, reason: str) -> None:
    for record in ask(Double(pieces, close=close), 2).records:
        assert not record.success and reason in record.error


def test_a_server_that_is_not_there() -> None:
    async def run() -> Run:
        async with serving(Double([])) as address:
            pass
        target = Target(Pool(address), "/v1/completions", False, "m")
        return await measure(target, [ASKED], [0.0])

    [record] = asyncio.run(run()).records
    assert "does not answer" in record.error


def test_no_more_requests_at_once_than_allowed() -> None:
    async def run() -> tuple[Double, Run]:
        double = Double(WHOLE, gate=asyncio.Event())
        assert double.gate is not None
        async with serving(double) as address:
            target = Target(Pool(address), "/v1/completions", False, "m")
            running = asyncio.create_task(measure(target, [ASKED] * 9, [0.0] * 9, 3))
            async with double.arrived:
                await double.arrived.wait_for(lambda: double.running == 3)
            double.gate.set()
            found = await running
            target.pool.close()
        return double, found

    double, found = asyncio.run(run())
    assert double.most == 3 and len(double.requests) == 9
    assert all(record.success for record in found.records)


def test_a_client_that_is_late_says_so() -> None:
    assert Lag(late=[0.0] * 100, cpu_share=0.5).warning() is None
    assert "event loop" in (Lag(late=[0.0] * 90 + [0.1] * 10).warning() or "")
    assert "95% of a core" in (Lag(late=[0.0], cpu_share=0.95).warning() or "")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://x:99999"])
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        Address.parse(url)


def test_addresses() -> None:
    assert Address.parse("https://host/a/") == Address("host", 443, True, "/a")
    assert Address.parse("http://[::1]:80").url == "http://[::1]:80"
