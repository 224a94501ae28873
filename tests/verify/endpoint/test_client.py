"""Servers that are none, or answer anything: one sentence and exit code 3, never a traceback."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glm_portable.cli import main
from glm_portable.verify.endpoint.chat import Question, ask, from_chunks, from_whole
from glm_portable.verify.endpoint.client import Broken, Client, Refused
from glm_portable.verify.endpoint.exam import Exam, Settings
from glm_portable.verify.endpoint.run import GROUPS, examine
from glm_portable.verify.results import Status

Answer = tuple[int, str, bytes]
HTML = (200, "text/html", b"<html><body>Welcome to nginx!</body></html>")
MODELS = {"object": "list", "data": [{"id": "glm"}]}
HELLO = Question("hello", [{"role": "user", "content": "Hello"}])


def answer(body: Any, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(body).encode()


@contextmanager
def answering(give: Callable[[str], Answer]) -> Iterator[str]:
    """The URL of a server that answers every path with what `give` makes of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, content = give(self.path)
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


def chat_with(chat: Answer) -> Callable[[str], Answer]:
    """A server that lists a model, and answers everything else with `chat`."""
    return lambda path: answer(MODELS) if path == "/v1/models" else chat


@pytest.mark.parametrize(
    "give, said",
    [
        (lambda path: HTML, "is no server of the OpenAI API: /v1/models answered 200 with what is"),
        (lambda path: answer([]), "with JSON that is no object"),
        (lambda path: answer({"detail": "Not Found"}, 404), "(404: Not Found): name one with"),
        (lambda path: answer({"error": {"message": "no key"}}, 401), "no key): give --api-key"),
        (lambda path: answer({"data": []}), "lists no model"),
        (chat_with(answer({"error": {"message": "no such"}}, 404)), "404: no such; check --model"),
        (chat_with(answer({"choices": []})), "lists models, but the answer has no choices"),
        (chat_with(answer({"choices": [{"message": "Hi"}]})), "the answer has no message"),
        (chat_with(HTML), "lists models, but /v1/chat/completions answered 200 with what is no"),
        (chat_with((502, "text/html", b"Bad Gateway")), "answered 502: Bad Gateway"),
    ],
)
def test_what_is_no_server_of_the_api(give: Callable[[str], Answer], said: str) -> None:
    with answering(give) as url:
        result = verify("endpoint", url)
    assert result.exit_code == 3, result.output
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_a_server_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        result = verify("endpoint", f"127.0.0.1:{listening.getsockname()[1]}")
        assert result.exit_code == 3 and "write it as http://HOST:PORT" in result.stderr
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        result = verify("endpoint", url, "--timeout", "0.2")
    assert result.exit_code == 3
    assert "/v1/models gave no answer within 0.2 s" in result.stderr


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    for command in (["endpoint"], ["diff", f"http://127.0.0.1:{port}"]):
        result = verify(*command, f"http://127.0.0.1:{port}")
        assert result.exit_code == 3 and "broke off the connection" in result.stderr


@pytest.mark.parametrize(
    "options, said",
    [
        (["--only", "juggling"], "'juggling' is no group of checks; use prompt, thinking"),
        (["--samples", "0"], "samples is 0; it has to be more than 0"),
        (["--reference", "/no/such"], "'/no/such' is no file, no folder and no published model"),
    ],
)
def test_options_that_make_no_sense(options: list[str], said: str) -> None:
    hi = answer({"choices": [{"message": {"content": "Hi"}}]})
    with answering(chat_with(hi)) as url:
        result = verify("endpoint", url, *options)
    assert result.exit_code == 3 and said in result.stderr


PARROT = answer(
    {
        "choices": [{"message": {"role": "assistant", "content": "ha " * 50}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": True},
    }
)


def test_every_check_survives_a_parrot() -> None:
    """It answers everything, streams too, with one object: each check has its say about it."""
    with answering(chat_with(PARROT)) as url, Client(url, timeout=5) as client:
        exam = Exam(client, "glm", 4096, None, Settings(samples=2, concurrency=2))
        checks = {f"{c.subject}: {c.name}": c for c in examine(exam, GROUPS)}
    failed = {name for name, check in checks.items() if check.status is Status.FAIL}
    assert failed >= {
        "prompt: a longer system prompt",
        "thinking: on",
        "tool calls: complete and typed",
        "answer: streamed as unstreamed",
        "answer: usage",
        "errors: nonsense is refused",
        "text: repetition",
    }
    assert "asked to stream and answered with 'application/json'" in str(checks)
    assert checks["numbers: log probabilities"].status is Status.SKIPPED
    assert "--reference" in checks["prompt: tokens of known conversations"].note


def test_what_a_server_refuses_is_unsupported() -> None:
    no = answer({"error": {"message": "tools are not supported"}}, 400)
    with answering(chat_with(no)) as url, Client(url, timeout=5) as client:
        exam = Exam(client, "glm", None, None, Settings())
        checks = list(examine(exam, ["tools", "determinism"]))
    looked = [check for check in checks if check.name != "as the model wrote them"]
    assert {check.status for check in looked} == {Status.UNSUPPORTED}
    assert all("400: tools are not supported" in check.note for check in looked)


STREAM = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'


@pytest.mark.parametrize(
    "content, done", [(STREAM + b"data: [DONE]\n\n", True), (b": ping\r\n" + STREAM, False)]
)
def test_streams(content: bytes, done: bool) -> None:
    give = chat_with((200, "text/event-stream; charset=utf-8", content))
    with answering(give) as url, Client(url) as client:
        stream = client.stream("/v1/chat/completions", {})
    assert from_chunks(stream.chunks).content == "Hi" and stream.done is done


@pytest.mark.parametrize(
    "content, said",
    [
        (b"data: {oops\n\n", "an event that is no JSON"),
        (b'data: {"error": {"message": "x"}}\n\n', "error: x"),
    ],
)
def test_broken_streams(content: bytes, said: str) -> None:
    with answering(chat_with((200, "text/event-stream", content))) as url, Client(url) as client:
        with pytest.raises(Broken, match=said):
            client.stream("/v1/chat/completions", {})


def test_refused_and_broken() -> None:
    for status, kind in ((422, Refused), (501, Refused), (500, Broken), (302, Broken)):
        with answering(chat_with(answer({"detail": "why"}, status))) as url, Client(url) as client:
            with pytest.raises(kind, match="why"):
                ask(client, "glm", HELLO)


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": 3}},
        {"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}},
        {"message": {"tool_calls": [{}]}},
        {"message": {"content": "x"}, "logprobs": {"content": [{"token": "x"}]}},
        {"message": {"content": "x"}, "logprobs": {"content": 7}},
    ],
)
def test_answers_of_another_shape(choice: Any) -> None:
    with pytest.raises(Broken):
        from_whole({"choices": [choice]})


def test_a_streamed_answer_is_put_together() -> None:
    pieces: list[dict[str, Any]] = [
        {"reasoning_content": "So"},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    chunks = [{"choices": [{"delta": piece}]} for piece in pieces]
    last = {
        "choices": [{"delta": {}, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 4},
    }
    said = from_chunks([*chunks, last])
    assert said.everything == ("So", "", (("f", '{"a": 1}'), ("g", "{}")))
    assert (said.finish_reason, said.count("prompt_tokens")) == ("tool_calls", 4)
