"""Traces: what a span holds, whose trace it continues, and that it costs nothing unasked."""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from glm_portable import serve as serve_package
from glm_portable.engine.types import Delta, Timeline
from glm_portable.errors import UsageError
from glm_portable.serve.tracing import Tracing
from tests.serve.conversation import HI
from tests.serve.fake_engine import Running, eventually, fake_server, says

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
)
from opentelemetry.sdk.trace import ReadableSpan  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TIMES = Timeline(arrived=1.0, scheduled=2.0, first_token=4.0, last_token=8.0)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(spans: InMemorySpanExporter) -> Iterator[Running]:
    with fake_server() as running:
        running.service.tracing = Tracing(SimpleSpanProcessor(spans))
        running.engine.script = lambda request: timed("Hello.")
        yield running
        running.service.tracing.close()


def timed(text: str) -> list[Delta]:
    *deltas, last = says(text)
    return [*deltas, replace(last, timeline=TIMES)]


def ask(running: Running, *, headers: dict[str, str] | None = None, **options: Any) -> int:
    body = {"messages": HI} | options
    return httpx.post(running.url + CHAT, json=body, headers=headers, timeout=20).status_code


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    eventually(lambda: bool(spans.get_finished_spans()))
    (span,) = spans.get_finished_spans()
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_span(traced: Running, spans: InMemorySpanExporter, stream: bool) -> None:
    headers = {"x-request-id": "mine", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    options = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 99, "stream": stream}
    assert ask(traced, headers=headers, **options) == 200
    span = only(spans)
    assert span.name == "llm_request" and span.kind is SpanKind.SERVER
    assert span.context is not None and f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT
    assert span.start_time is not None and span.end_time is not None
    assert span.end_time > span.start_time
    found = dict(span.attributes or {})
    tokens = len(says("Hello."))
    prompt = len(traced.engine.requests[0].prompt_ids)
    assert found == {
        "gen_ai.request.id": "mine",
        "gen_ai.request.model": "pocket",
        "gen_ai.request.n": 1,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 99,
        "gen_ai.usage.prompt_tokens": prompt,
        "gen_ai.usage.completion_tokens": tokens,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": tokens,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.latency.time_in_queue": 1.0,
        "gen_ai.latency.time_to_first_token": 3.0,
        "gen_ai.latency.time_in_model_prefill": 2.0,
        "gen_ai.latency.time_in_model_decode": 4.0,
        "gen_ai.latency.time_in_model_inference": 6.0,
        "gen_ai.latency.e2e": 7.0,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": CHAT,
    }


def test_a_failed_request_is_an_error(traced: Running, spans: InMemorySpanExporter) -> None:
    traced.engine.script = lambda request: [Delta(finish_reason="error", error="No.")]
    assert ask(traced) == 500
    span = only(spans)
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "engine_error"
    assert span.parent is None


def test_only_what_reached_the_model_is_traced(
    traced: Running, spans: InMemorySpanExporter
) -> None:
    httpx.get(f"{traced.url}/health")
    assert ask(traced, messages=[]) == 400
    assert ask(traced, headers={"traceparent": "garbage"}) == 200
    assert len(only(spans).attributes or {}) > 5


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """What an OpenTelemetry collector is to an exporter."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_spans_reach_a_collector(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with collector() as (url, received), fake_server() as running:
        if way == "environment":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        tracing = Tracing.to(f"{url}/v1/traces" if way == "flag" else None)
        assert tracing is not None
        running.service.tracing = tracing
        assert ask(running, headers={"x-request-id": "mine"}) == 200
        eventually(lambda: not running.service.running)
        tracing.close()
    (path, body), *_ = received
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert names["service.name"] == "glm-portable"
    (span,) = resource.scope_spans[0].spans
    assert {a.key: a.value.string_value for a in span.attributes}["gen_ai.request.id"] == "mine"


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert Tracing.to(None) is None
    serve = Path(serve_package.__file__ or "").parent
    for path in serve.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if re.match("(from|import) opentelemetry", line)], path


def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in [n for n in sys.modules if n.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match=r"--otlp-traces-endpoint .* pip install"):
        Tracing.to("http://127.0.0.1:1/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert Tracing.to(None) is None and "pip install" in caplog.text
