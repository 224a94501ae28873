"""OpenTelemetry: one span per request that reached the model, named and filled as vLLM does it.

The SDK is an extra of the package (`otel`) and is imported only when traces are asked for.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any, Self

from glm_portable.errors import UsageError
from glm_portable.serve.exchange import Exchange

log = logging.getLogger(__name__)

_ENVIRONMENT = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_INSTALL = "install it: pip install 'glm-portable[otel]'"


class Tracing:
    """Makes spans of exchanges and exports them from a thread of its own."""

    def __init__(self, processor: Any) -> None:
        """processor: a SpanProcessor, which decides where spans go."""
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins over this name.
        resource = Resource({SERVICE_NAME: "glm-portable"}).merge(Resource.create())
        if "OTEL_SERVICE_NAME" not in os.environ:
            resource = resource.merge(Resource({SERVICE_NAME: "glm-portable"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("glm_portable")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str | None) -> Self | None:
        """Over HTTP to `endpoint`, or where the OTEL_* variables say; None if nobody says.

        Raises UsageError if an endpoint is given and the SDK is not installed.
        """
        if endpoint is None and not any(map(os.environ.get, _ENVIRONMENT)):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            if endpoint is not None:
                raise UsageError(
                    f"--otlp-traces-endpoint needs the OpenTelemetry SDK; {_INSTALL}"
                ) from None
            # The variables are often set for all programs of a machine.
            log.warning("OTEL_* names an endpoint, but the SDK is not here; %s", _INSTALL)
            return None
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))

    def record(self, exchange: Exchange, headers: Mapping[str, str], route: str) -> None:
        """A request is over: its span, within the trace that its traceparent header names."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=exchange.started_ns,
            attributes=_attributes(exchange) | {"http.route": route},
        )
        if exchange.status >= 500 or (exchange.error and exchange.status == 200):
            span.set_status(Status(StatusCode.ERROR, exchange.error))
        span.end(exchange.started_ns + int(exchange.seconds * 1e9))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _attributes(exchange: Exchange) -> dict[str, Any]:
    """vLLM's names, and beside them those of OpenTelemetry's conventions where they differ."""
    found: dict[str, Any] = {
        "gen_ai.request.id": exchange.request_id,
        "gen_ai.request.model": exchange.model,
        "gen_ai.request.n": exchange.choices,
        "gen_ai.usage.prompt_tokens": exchange.prompt_tokens,
        "gen_ai.usage.completion_tokens": exchange.completion_tokens,
        "gen_ai.usage.input_tokens": exchange.prompt_tokens,
        "gen_ai.usage.output_tokens": exchange.completion_tokens,
        "gen_ai.response.finish_reasons": exchange.finish_reasons,
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "error.type": exchange.error,
    }
    if exchange.params is not None:
        found["gen_ai.request.temperature"] = exchange.params.temperature
        found["gen_ai.request.top_p"] = exchange.params.top_p
        found["gen_ai.request.max_tokens"] = exchange.params.max_tokens
    return {
        key: value for key, value in (found | _latencies(exchange)).items() if value is not None
    }


def _latencies(exchange: Exchange) -> dict[str, float]:
    """Of the choice that ended last, in seconds."""
    for times in reversed(exchange.timelines):
        if times.scheduled is None or times.first_token is None or times.last_token is None:
            continue
        return {
            "gen_ai.latency.time_in_queue": times.scheduled - times.arrived,
            "gen_ai.latency.time_to_first_token": times.first_token - times.arrived,
            "gen_ai.latency.time_in_model_prefill": times.first_token - times.scheduled,
            "gen_ai.latency.time_in_model_decode": times.last_token - times.first_token,
            "gen_ai.latency.time_in_model_inference": times.last_token - times.scheduled,
            "gen_ai.latency.e2e": times.last_token - times.arrived,
        }
    return {}
