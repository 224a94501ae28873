"""Queue, rate and time limits, keys from a file, TLS, and clients that do not read."""

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest
from click.testing import CliRunner
from uvicorn.protocols.http.flow_control import FlowControl

from glm_portable.cli import main
from glm_portable.engine.types import Delta
from glm_portable.errors import UsageError
from glm_portable.serve.connections import limited_protocol
from glm_portable.serve.flags import take_settings
from glm_portable.serve.rate import MAX_CALLERS, Buckets
from glm_portable.serve.settings import ServerSettings
from tests.serve.conversation import HI
from tests.serve.fake_engine import WAIT_S, Submitted, eventually, fake_server, says
from tests.serve.raw import connect, read_to_the_end, start_request

CHAT = "/v1/chat/completions"
PATHS = {
    CHAT: {"messages": HI},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": HI, "max_tokens": 5, "model": "pocket"},
}


def first_token(request: Submitted) -> list[Delta]:
    return says("Hello")[:1]


@pytest.mark.parametrize("path", PATHS)
def test_a_full_queue(path: str) -> None:
    with fake_server(max_queue=2) as running:
        for waiting, status in ((1, 200), (2, 429), (3, 429), (0, 200)):
            running.engine.stats_now = replace(running.engine.stats_now, waiting=waiting)
            answer = httpx.post(running.url + path, json=PATHS[path])
            assert answer.status_code == status, (waiting, answer.text)
            if status == 429:
                assert answer.headers["retry-after"] == "1"
                assert "2 requests are waiting already" in answer.json()["error"]["message"]
        assert len(running.engine.requests) == 2


def test_a_queue_that_fills_up_while_the_request_is_read() -> None:
    with fake_server(max_queue=2) as running:
        stats = running.engine.stats_now
        waiting = iter([1, 2])
        running.engine.stats = lambda: replace(stats, waiting=next(waiting))  # type: ignore[method-assign]
        assert httpx.post(running.url + CHAT, json={"messages": HI}).status_code == 429
        assert running.engine.requests == []


def test_openai_waits_and_tries_again() -> None:
    """The client's own behaviour at 429, which the short Retry-After is for."""
    with fake_server(rate_limit=6000) as running:
        stats = running.engine.stats_now
        waiting = iter([5, *[0] * 9])
        running.service.settings = replace(running.service.settings, max_queue=1)
        running.engine.stats = lambda: replace(stats, waiting=next(waiting))  # type: ignore[method-assign]
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=1) as client:
            chat: Any = client.chat.completions.create(model="pocket", messages=HI)
        assert chat.choices[0].message.content == "Hello there."


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(stream: bool) -> None:
    with fake_server(request_timeout_s=0.05) as running:
        running.engine.script = first_token
        answer = httpx.post(running.url + CHAT, json={"messages": HI, "stream": stream})
        if stream:
            last = answer.text.rstrip().rpartition("data: ")[2]
            assert "[DONE]" not in answer.text
        else:
            assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
            last = answer.text
        error = json.loads(last)["error"]
        assert error["code"] == "request_timeout" and "0.05 s" in error["message"]
        assert running.engine.requests[0].cancelled.wait(WAIT_S)
        eventually(lambda: not running.service.running)


def test_an_answer_in_time_leaves_no_timer() -> None:
    with fake_server(request_timeout_s=3600) as running:
        assert httpx.post(running.url + CHAT, json={"messages": HI}).status_code == 200


def test_buckets_refill_evenly() -> None:
    now = [0.0]
    buckets = Buckets(60, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(60)] == [0.0] * 60
    assert buckets.take("a") == pytest.approx(1)
    assert buckets.take("b") == 0, "each caller has one of their own"
    now[0] = 0.5
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] = 1.0
    assert buckets.take("a") == 0 and buckets.take("a") > 0
    now[0] = 10_000.0
    assert [buckets.take("a") > 0 for _ in range(61)] == [False] * 60 + [True], "no more than full"


def test_buckets_are_bounded() -> None:
    buckets = Buckets(1, clock=lambda: 0.0)
    for caller in range(MAX_CALLERS + 1):
        assert buckets.take(str(caller)) == 0
    assert buckets.take(str(MAX_CALLERS)) > 0 and buckets.take("1") > 0
    assert buckets.take("0") == 0, "the oldest was forgotten"


def test_the_rate_is_limited_by_key() -> None:
    with fake_server(rate_limit=2, api_keys=("a", "b")) as running:

        def ask(key: str, path: str = CHAT) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(running.url + path, json=PATHS[path], headers=headers)

        assert [ask("a").status_code for _ in range(3)] == [200, 200, 429]
        assert ask("b").status_code == 200 and ask("wrong").status_code == 401
        refused = ask("a")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert ask("a", "/v1/messages").json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_without_keys_the_rate_is_limited_by_address() -> None:
    with fake_server(rate_limit=1) as running:
        body = {"messages": HI}
        assert [httpx.post(running.url + CHAT, json=body).status_code for _ in "ab"] == [200, 429]


def test_anthropic_sends_its_key_in_a_header_of_its_own() -> None:
    with fake_server(api_keys=("right",)) as running:
        for key, status in (("right", 200), ("wrong", 401), ("", 401)):
            headers = {"x-api-key": key}
            assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == status
        both = {"x-api-key": "right", "authorization": "Bearer wrong"}
        assert httpx.get(f"{running.url}/v1/models", headers=both).status_code == 401
        with anthropic.Anthropic(base_url=running.url, api_key="right", max_retries=0) as client:
            message = client.messages.create(
                model="pocket", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
            )
        assert message.content


def test_an_answer_that_nobody_reads_is_cut() -> None:
    """What waits is bounded by the sockets' buffers, and by time."""
    with fake_server(write_timeout_s=0.2) as running:
        piece = says("word")[0]
        big = Delta(piece.token_ids, "x" * 100_000)
        running.engine.script = lambda request: [big] * 200
        with start_request(running.url, stream=True):
            request = running.engine.wait_for(1)[0]
            assert request.cancelled.wait(WAIT_S), "the server still waits for its reader"
        eventually(lambda: not running.service.running)


def test_an_unstreamed_answer_that_nobody_reads_is_cut() -> None:
    with fake_server(write_timeout_s=0.2) as running:
        piece = says("word")[0]
        last = Delta(piece.token_ids, "x" * 20_000_000, finish_reason="stop")
        running.engine.script = lambda request: [last]
        with start_request(running.url):
            eventually(lambda: bool(running.engine.requests))
            eventually(lambda: len(running.server.server_state.connections) == 1)
            eventually(lambda: not running.server.server_state.connections)


class Transport:
    """A connection whose buffer holds what the test says."""

    waiting, aborted = 100, False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.aborted = True


class Clock:
    """An event loop that calls when the test says."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def call_later(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> "Clock":
        self.calls.append(lambda: call(*arguments))
        return self

    def cancel(self) -> None:
        self.calls.pop()

    def pass_by(self) -> None:
        self.calls[-1]()


def test_a_slow_reader_is_not_cut() -> None:
    """As long as it takes something in each interval."""
    kind: Any = limited_protocol(ServerSettings())
    protocol, transport, clock = kind.__new__(kind), Transport(), Clock()
    protocol.transport, protocol.loop, protocol.flow = transport, clock, FlowControl(transport)  # type: ignore[arg-type]
    protocol.pause_writing()
    for transport.waiting in (70, 69, 1):
        clock.pass_by()
        assert not transport.aborted and len(clock.calls) == 1
    clock.pass_by()
    assert transport.aborted
    protocol.resume_writing()
    assert clock.calls == []


def test_a_stream_waits_for_a_slow_reader() -> None:
    """Nothing is added to a buffer that is full, and nothing written for a client that is gone."""
    kind: Any = limited_protocol(ServerSettings())
    protocol, written = kind.__new__(kind), list[bytes]()
    protocol.transport = SimpleNamespace(write=written.append)
    protocol.cycle = SimpleNamespace(
        disconnected=False, response_started=True, response_complete=False
    )

    async def write(data: bytes) -> None:
        await protocol.drain()
        protocol.write_piece(data)

    async def write_three() -> None:
        protocol.flow = FlowControl(protocol.transport)
        await write(b"first")
        protocol.flow.pause_writing()
        writing = asyncio.create_task(write(b"second"))
        await asyncio.sleep(0)
        assert written == [b"5\r\nfirst\r\n"] and not writing.done() and not protocol.writable
        protocol.flow.resume_writing()
        await writing
        assert protocol.writable
        protocol.cycle.disconnected = True
        await write(b"third")

    asyncio.run(write_three())
    assert written == [b"5\r\nfirst\r\n", b"6\r\nsecond\r\n"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl to make a certificate with; CI has one")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = (
        f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {cert}"
    )
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([program, *words.split(), *names], check=True, capture_output=True)
    return cert, key


def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))
    with fake_server(ssl_certfile=cert, ssl_keyfile=key, header_timeout_s=0.3) as running:
        assert running.url.startswith("https://")
        with httpx.Client(base_url=running.url, verify=context, timeout=WAIT_S) as client:
            assert client.post(CHAT, json={"messages": HI}).status_code == 200
            stream = client.post(CHAT, json={"messages": HI, "stream": True}).text
            assert stream.rstrip().endswith("data: [DONE]")
        with (
            connect(running.url) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")  # and never the rest
            try:
                assert read_to_the_end(secure) == b""
            except ssl.SSLEOFError:
                pass  # closed as well


def test_wrong_certificates(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    other = tmp_path / "key.pem"
    other.write_text("nonsense", encoding="utf-8")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ssl_certfile": cert}, "needs both"),
        ({"ssl_certfile": cert, "ssl_keyfile": other}, "not a PEM certificate"),
        ({"ssl_certfile": tmp_path / "none", "ssl_keyfile": key}, "No such file"),
    ]
    for wrong, words in cases:
        with pytest.raises(UsageError, match=words):
            ServerSettings(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_queue": 0}, {"stream_interval": 0}, {"rate_limit": -1}, {"request_timeout_s": 0.0}),
        *({"request_timeout_s": float("nan")}, {"max_body_bytes": 0}, {"write_timeout_s": -1.0}),
    ],
)
def test_limits_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ServerSettings(**wrong)


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ServerSettings]]:
    """The settings that a command line makes."""
    found: list[ServerSettings] = []

    def serve(*others: Any, **options: Any) -> int:
        found.append(take_settings(options))
        return 0

    monkeypatch.setattr("glm_portable.serving.run_server", serve)

    def settings(*line: str, env: dict[str, str] | None = None) -> ServerSettings:
        result = CliRunner().invoke(main, ["serve", *line], env=env)
        assert result.exit_code == 0, result.output
        return found[-1]

    yield settings


def test_the_command_line(settings_of: Callable[..., ServerSettings], tmp_path: Path) -> None:
    assert settings_of() == ServerSettings(), "the defaults are written twice"
    keys = tmp_path / "keys"
    keys.write_text("# mine\nfirst\n\n  second  \n", encoding="utf-8")
    line = f"--api-key zero --api-key-file {keys} --max-queued-requests 7 --rate-limit 60"
    line += " --request-timeout 30 --max-body-size 1000 --write-timeout 5 --allow-origins a"
    line += " --stream-interval 4"
    found = settings_of(*line.split(), "--allowed-origins", '["b", "*"]')
    assert found.api_keys == ("zero", "first", "second")
    assert (found.max_queue, found.rate_limit, found.request_timeout_s) == (7, 60, 30)
    assert (found.max_body_bytes, found.write_timeout_s) == (1000, 5)
    assert found.stream_interval == 4
    assert found.allowed_origins == ("a", "b", "*")
    assert settings_of(env={"GLM_PORTABLE_API_KEY": "secret"}).api_keys == ("secret",)
    assert settings_of(env={"GLM_PORTABLE_MAX_QUEUE": "3"}).max_queue == 3


def test_bad_values_on_the_command_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# none\n", encoding="utf-8")
    for line, words in (
        (["--api-key-file", str(empty)], "holds no key"),
        (["--api-key-file", str(tmp_path / "none")], "cannot be read"),
        (["--allowed-origins", "[1]"], "not a JSON list"),
        (["--allowed-origins", "[nonsense"], "not a JSON list"),
        (["--max-queue", "0"], "must be above 0"),
        (["--log-format", "xml"], "xml"),
    ):
        result = CliRunner().invoke(main, ["serve", *line])
        assert result.exit_code == 2 and words in result.output, (line, result.output)
