"""What a stream is on the wire: the same bytes by the short ways as by the long ones."""

import json
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glm_portable.engine.types import Delta
from glm_portable.serve.streaming import TextEvent, encode, event
from tests.serve.conversation import CALL, HI, THOUGHT, WEATHER
from tests.serve.fake_engine import Running, says
from tests.serve.raw import CHAT, connect, read_to_the_end

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(VALUE)
@example('\x00\x1f\x7f\b\f\n\r\t"\\/é🙂<>&')
@example("a\x85b\u2028c\u2029d")
def test_the_encoder_writes_what_json_writes(value: Any) -> None:
    expected = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in ("\x85", "\u2028", "\u2029"):
        expected = expected.replace(character, f"\\u{ord(character):04x}")
    assert encode(value) == expected.encode()
    assert len(encode(value).decode().splitlines()) == 1


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_the_same_number(value: float) -> None:
    assert json.loads(encode([value])) == [value]


@given(st.lists(TEXT, min_size=1), TEXT, TEXT)
def test_only_the_text_of_an_event_changes(texts: list[str], model: str, key: str) -> None:
    def chunk(text: str) -> dict[str, Any]:
        return {"model": model.replace("\0", ""), "choices": [{"text": text, key: None}]}

    made = TextEvent(chunk)
    for text in texts:
        assert made.of(text) == event(chunk(text))


ENDS = ("data: [DONE]", "event: message_stop", "event: response.completed")


def streamed(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    """The events, without what is another in each answer."""
    answer = http.post(path, json=body | {"stream": True})
    assert answer.status_code == 200
    assert any(end in answer.text.rstrip().split("\n\n")[-1] for end in ENDS)
    text = re.sub(r'"((item_|call_)?id)":"[a-z]+[-_][0-9a-f]+"', r'"\1":""', answer.text)
    return re.sub(r'"((created|completed)(_at)?)":[0-9]+', r'"\1":0', text)


FUNCTION: Any = WEATHER["function"]
ANTHROPIC_WEATHER = {"name": "get_weather", "input_schema": FUNCTION["parameters"]}
RESPONSES_WEATHER = {"type": "function"} | FUNCTION
USAGE = {"include_usage": True}
EVERY_USAGE = USAGE | {"continuous_usage_stats": True}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HI}),
        (CHAT, {"messages": HI, "n": 3, "stream_options": USAGE}),
        (CHAT, {"messages": HI, "stream_options": EVERY_USAGE}),
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 1}),
        (CHAT, {"messages": HI, "tools": [WEATHER]}),
        ("/v1/completions", {"prompt": ["One", "Two"], "n": 2, "stream_options": USAGE}),
        ("/v1/completions", {"prompt": "One", "stream_options": EVERY_USAGE}),
        ("/v1/completions", {"prompt": "One", "echo": True}),
        ("/v1/completions", {"prompt": "One", "logprobs": 1}),
        ("/v1/messages", {"messages": HI, "max_tokens": 99, "thinking": {"type": "adaptive"}}),
        ("/v1/messages", {"messages": HI, "max_tokens": 99, "tools": [ANTHROPIC_WEATHER]}),
        ("/v1/responses", {"input": HI}),
        ("/v1/responses", {"input": HI, "tools": [RESPONSES_WEATHER]}),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_a_chunk_with_nothing_but_text_is_like_any_other(
    server: Running,
    http: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    size: int,
) -> None:
    text = THOUGHT + ' Größe \u2028 "x".' + (CALL if "tools" in body else "")
    server.engine.script = lambda request: says(text, size=size)
    short = streamed(http, path, body)

    def keep(self: Any, content: Callable[[str], Any], name: str = "") -> None:
        self.content, self.name = content, name

    def encode_all(self: Any, text: str) -> bytes:
        return event(self.content(text), self.name)

    monkeypatch.setattr(TextEvent, "__init__", keep)
    monkeypatch.setattr(TextEvent, "of", encode_all)
    # The choices of one request come in any order.
    assert sorted(short.split("\n\n")) == sorted(streamed(http, path, body).split("\n\n"))


def test_thinking_and_text_stay_apart(server: Running, http: httpx.Client) -> None:
    """Also in the pieces that are nothing but text."""
    server.engine.script = lambda request: says(THOUGHT + " An answer.")
    message = http.post(CHAT, json={"messages": HI}).json()["choices"][0]["message"]
    events = streamed(http, CHAT, {"messages": HI}).split("\n\n")[:-2]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in events]
    for field in ("reasoning_content", "content"):
        pieces = [delta[field] for delta in deltas if delta.get(field)]
        assert "".join(pieces) == message[field] and len(pieces) > 2


def ask(version: str, then: str) -> bytes:
    body = json.dumps({"messages": HI, "stream": True})
    head = f"POST {CHAT} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: {then}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def unchunked(body: bytes) -> tuple[list[bytes], bytes]:
    """The chunks, and what comes after the last."""
    chunks = list[bytes]()
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        chunk, end, body = body[:length], body[length : length + 2], body[length + 2 :]
        assert end == b"\r\n" and len(chunk) == length
        if not length:
            return chunks, body
        chunks.append(chunk)


def read_words(connection: socket.socket, running: Running, words: Sequence[str]) -> bytes:
    """Have each word sent in a piece of its own: the next comes when the client has the last."""
    request, found = running.engine.wait_for(1)[0], b""
    for number, word in enumerate(words, 1):
        request.send(Delta((1,), word))
        while found.count(b'"content":"word') < number:
            piece = connection.recv(4096)
            assert piece, found
            found += piece
    request.send(says("")[-1])
    return found


def test_pieces_are_chunks_and_the_connection_goes_on(server: Running) -> None:
    with connect(server.url) as connection:
        server.engine.script = lambda request: []
        connection.sendall(ask("1.1", "keep-alive"))
        found = read_words(connection, server, ["word one", "word two", "word three"])
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = (found + read_to_the_end(connection)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"transfer-encoding: chunked" in head.lower()
    chunks, rest = unchunked(body)
    assert len(chunks) >= 4 and b"".join(chunks).endswith(b"data: [DONE]\n\n")
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)
    assert rest.startswith(b"HTTP/1.1 200") and rest.endswith(b"}")


def test_an_old_client_gets_no_chunks(server: Running) -> None:
    with connect(server.url) as connection:
        server.engine.script = lambda request: []
        connection.sendall(ask("1.0", "close"))
        found = read_words(connection, server, ["word one", "word two"])
        head, _, body = (found + read_to_the_end(connection)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"chunked" not in head
    assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")
    assert b"\r\n" not in body
