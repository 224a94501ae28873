"""Examinations of the engine's weights, asked for from the server's process."""

import asyncio

import pytest

from glm_portable.engine.engine import EngineDraining
from tests.engine.test_examination import Weighed
from tests.serve.remote.pair import WAIT_S
from tests.serve.remote.test_remote import ENDLESS, Gated, connected


def test_what_is_found_comes_over_the_wire() -> None:
    async def found() -> list[str | None]:
        model = Weighed()
        results: asyncio.Queue[str | None] = asyncio.Queue()
        async with connected(model) as (client, _):
            client.examine(results.put_nowait)
            first = await asyncio.wait_for(results.get(), WAIT_S)
            model.faulty = 3
            client.examine(results.put_nowait)
            client.examine(results.put_nowait)
            rest = [await asyncio.wait_for(results.get(), WAIT_S) for _ in range(2)]
            return [first, *rest]

    changed = "expert 1 of x3 has changed since the start"
    assert asyncio.run(found()) == [None, changed, changed]


def test_whoever_waits_hears_of_the_end() -> None:
    async def found() -> str | None:
        results: asyncio.Queue[str | None] = asyncio.Queue()
        model = Gated()
        model.gate.clear()
        async with connected(model) as (client, _):
            client.submit([1, 2], ENDLESS, lambda delta: None)
            await asyncio.to_thread(model.reached.wait, WAIT_S)
            client.examine(results.put_nowait)
            client.connection_lost(None)
            with pytest.raises(EngineDraining):
                client.examine(results.put_nowait)
            return await asyncio.wait_for(results.get(), WAIT_S)

    assert asyncio.run(found()) == "the engine has ended"
