"""Servers and clients for the tests of the HTTP layer."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.fake_engine import WAIT_S, FakeEngine, Running, fake_server, says


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Running]:
    with fake_server() as running:
        yield running


@pytest.fixture
def server(shared_server: Running) -> Running:
    """A running server whose engine knows nothing of earlier tests."""
    engine = FakeEngine()
    shared_server.engine = shared_server.service.engine = engine
    return shared_server


@pytest.fixture(scope="session")
def shared_http(shared_server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_server.url, timeout=WAIT_S) as client:
        yield client


@pytest.fixture(scope="session")
def shared_client(shared_server: Running) -> Iterator[openai.OpenAI]:
    url = f"{shared_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0, timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def http(server: Running, shared_http: httpx.Client) -> httpx.Client:
    return shared_http


@pytest.fixture
def client(server: Running, shared_client: openai.OpenAI) -> openai.OpenAI:
    return shared_client


@pytest.fixture
def hello(server: Running) -> str:
    server.engine.script = lambda request: says("Hello there.")
    return "Hello there."
