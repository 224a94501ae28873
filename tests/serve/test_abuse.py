"""A few of every kind of hostile request; `python -m tools.abuse URL` sends them all."""

import asyncio

from tests.serve.fake_engine import WAIT_S, Running, eventually
from tools.abuse import __main__ as abuse


def test_the_server_stays_a_server(server: Running) -> None:
    # The fake engine's gauges stand still.
    running = abuse.abuse(server.url, share=25, rounds=1, health_s=WAIT_S, idle=())
    target = asyncio.run(running)
    assert target.findings == []
    assert {attack.__name__.replace("_", " ") for attack in abuse.ATTACKS} <= set(target.statuses)
    eventually(lambda: not server.service.running)
