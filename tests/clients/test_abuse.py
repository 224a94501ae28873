"""Hostile requests of every kind, with the model at work behind the server: see tools/abuse."""

import asyncio

from tests.clients.server import serve
from tools.abuse.__main__ import abuse

CLIENT = "httpx"


def test_abuse(server_python: str) -> None:
    # A cache that the first round fills: its memory is taken as its pages are first used. And not
    # float32, for which oneDNN on the CPU keeps code of its own for every number of rows it meets.
    options = ("--max-model-len", "2048", "--kv-cache-memory", "33554432")
    with serve(server_python, *options) as running:
        target = asyncio.run(abuse(running.url, pid=running.process.pid))
    assert target.findings == []
