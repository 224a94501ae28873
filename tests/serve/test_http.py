"""Keys, limits, ids, cross-origin rules and the small endpoints."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.conversation import HI, chat
from tests.serve.fake_engine import WAIT_S, WINDOW, Running, eventually, fake_server
from tests.serve.raw import connect, read_to_the_end

BODY = {"messages": HI}
CHAT = "/v1/chat/completions"
LIMIT = 2000


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    """Small limits, two keys, one allowed page."""
    with fake_server(
        api_keys=("first-key", "schlüssel"),
        max_body_bytes=LIMIT,
        keep_alive_s=60,
        header_timeout_s=0.3,
        body_timeout_s=0.3,
        allowed_origins=("https://page.example",),
    ) as running:
        yield running


@pytest.fixture
def open_client(guarded: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def keyed(guarded: Running) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer first-key"}
    with httpx.Client(base_url=guarded.url, timeout=WAIT_S, headers=headers) as client:
        yield client


def test_models(server: Running, client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["pocket", "zai/pocket"]
    one: Any = client.models.retrieve("zai/pocket")
    assert (one.id, one.object, one.max_model_len) == ("zai/pocket", "model", WINDOW)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_without_a_key_the_server_is_open(client: openai.OpenAI, hello: str) -> None:
    assert chat(client).choices[0].message.content == hello


def test_version_and_health(http: httpx.Client) -> None:
    assert set(http.get("/version").json()) == {"version"}
    assert http.get("/health").status_code == 200


def test_the_description_is_complete(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    chat_post = document["paths"][CHAT]["post"]
    reference = chat_post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schemas = document["components"]["schemas"]
    assert reference == "#/components/schemas/ChatRequest"
    assert {"messages", "tools", "max_completion_tokens"} <= set(
        schemas["ChatRequest"]["properties"]
    )
    assert {"200", "400", "401", "404", "413", "415", "500", "503"} <= set(chat_post["responses"])
    assert "text/event-stream" in chat_post["responses"]["200"]["content"]
    names = {text.split('"')[0] for text in json.dumps(document).split("#/components/schemas/")[1:]}
    assert names <= set(schemas)
    assert not re.search(r'"[gl][et]": ', json.dumps(document))  # pydantic's own, no JSON Schema
    choices, _ = schemas["ChatRequest"]["properties"]["n"]["anyOf"]
    assert choices == {"type": "integer", "minimum": 1, "maximum": 16}


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "Bearer", "Bearer wrong", "Bearer first-key2", "first-key"),
        *("Basic first-key", "Bearer first-ke", "Bearer first-key,x", "Bearer \xff"),
    ],
)
def test_a_wrong_key(guarded: Running, open_client: httpx.Client, header: str | None) -> None:
    headers = {} if header is None else {b"authorization": header.encode("latin-1")}
    for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("GET", "/v1/nothing")):
        response = open_client.request(method, path, headers=headers)
        assert response.status_code == 401, (path, response.text)
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert guarded.engine.requests == []


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v1/models",
            "//v1/models",
            "/v1//models",
            "/V1/models",
            "/%76%31/models",
            "/v1/models/",
        ),
        *(
            "/health/../v1/models",
            "/health/",
            "/version/x",
            "/openapi.json/",
            "/health%2f",
            "/metrics/",
        ),
    ],
)
def test_every_trick_path_needs_the_key(guarded: Running, path: str) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("key", ["first-key", "schlüssel"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_key_opens(guarded: Running, open_client: httpx.Client, key: str, scheme: str) -> None:
    headers = {b"authorization": f"{scheme} {key}".encode()}
    assert open_client.get("/v1/models", headers=headers).status_code == 200
    assert open_client.post(CHAT, json=BODY, headers=headers).status_code == 200


def test_open_paths_need_no_key(open_client: httpx.Client) -> None:
    for path in ("/health", "/version", "/openapi.json"):
        assert open_client.get(path).status_code == 200


def test_request_ids(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "a-1"}).headers["x-request-id"] == "a-1"
    made = [http.get("/nothing").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for wrong in ("a" * 129, "a b", "<script>", "é", ""):
        headers = {b"x-request-id": wrong.encode("latin-1")}
        assert len(http.get("/health", headers=headers).headers["x-request-id"]) == 32


def test_a_refused_request_has_an_id(open_client: httpx.Client) -> None:
    assert open_client.get("/v1/models").headers["x-request-id"]


def test_a_body_over_the_limit(keyed: httpx.Client) -> None:
    fits, too_large = b" " * LIMIT, b" " * (LIMIT + 1)
    headers = {"content-type": "application/json"}
    assert keyed.post(CHAT, content=fits, headers=headers).status_code == 400
    assert keyed.post(CHAT, content=too_large, headers=headers).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield from (too_large[:1000], too_large[1000:])

    response = keyed.post(CHAT, content=chunks(), headers=headers)
    assert response.status_code == 413
    assert str(LIMIT) in response.json()["error"]["message"]


def test_a_declared_size_over_the_limit_is_not_awaited(guarded: Running) -> None:
    with connect(guarded.url) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first-key\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "GET /health HTTP/1.1\r\nHost: x\r\n",
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer first-key\r\n"
        'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"messages"',
        "GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHos",
    ],
)
def test_slow_clients_are_disconnected(guarded: Running, sent: str) -> None:
    """The connection is closed by the server: reading ends without the test's own timeout."""
    with connect(guarded.url) as connection:
        connection.sendall(sent.encode())
        answer = read_to_the_end(connection)
    assert answer.count(b"200 OK") == sent.count("\r\n\r\nGET")
    eventually(lambda: not guarded.service.running)


def test_slow_second_requests_are_disconnected(guarded: Running) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        while b'"ok"' not in connection.recv(4096):
            pass
        connection.sendall(b"GET /health HTT")
        assert read_to_the_end(connection) == b""


def test_a_trickle_does_not_help(guarded: Running) -> None:
    closed = threading.Event()
    with connect(guarded.url) as connection:

        def trickle() -> None:
            try:
                connection.sendall(b"GET /health HTTP/1.1\r\n")
                while not closed.wait(0.05):
                    connection.sendall(b"a: b\r\n")
            except OSError:  # the server has closed the connection, which is the point
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert read_to_the_end(connection) == b""
        except ConnectionResetError:
            pass
        finally:
            closed.set()
            thread.join()


def test_a_patient_server_waits_for_a_slow_request(server: Running) -> None:
    """With the usual limits the same pauses are fine."""
    body = json.dumps(BODY).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    with connect(server.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            connection.sendall(bytes([byte]))
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 200")


def test_huge_headers_and_foreign_protocols(server: Running) -> None:
    for sent in (
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ):
        with connect(server.url) as connection:
            try:
                connection.sendall(sent)
                answer = connection.recv(100)
            except (ConnectionResetError, BrokenPipeError):
                continue  # refused before everything was sent
            assert answer.startswith(b"HTTP/1.1 4"), sent[:30]
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_pages_of_other_origins(keyed: httpx.Client, http: httpx.Client) -> None:
    page = {"origin": "https://page.example"}
    allowed = keyed.get("/health", headers=page)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    preflight = page | {"access-control-request-method": "POST"}
    response = keyed.options(CHAT, headers=preflight | {"authorization": ""})
    assert response.status_code == 200
    stranger = preflight | {"origin": "https://other.example"}
    for path in (CHAT, "/v1/messages"):
        assert keyed.options(path, headers=stranger).status_code == 400
    other = keyed.get("/health", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in http.get("/health", headers=page).headers
