"""What Prometheus reads at /metrics: vLLM's names where they mean the same, and our own."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glm_portable.engine.stats import EngineStats
from glm_portable.serve.exchange import Exchange
from glm_portable.serve.request_metrics import RequestMetrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_GAUGES = (
    ("vllm:num_requests_running", "Requests in steps.", "running"),
    ("vllm:num_requests_waiting", "Requests that wait for a place in a step.", "waiting"),
)
_COUNTERS = (
    ("vllm:prompt_tokens", "Tokens of prompts that were read.", "prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated.", "generation_tokens"),
    ("vllm:num_preemptions", "Requests set back because the cache was full.", "preemptions"),
    (
        "vllm:prefix_cache_queries",
        "Tokens of prompts looked for in the cache.",
        "prefix_cache_queries",
    ),
    ("vllm:prefix_cache_hits", "Those of them that were found.", "prefix_cache_hits"),
    ("vllm:spec_decode_num_drafts", "Times that tokens were drafted.", "num_drafts"),
    ("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", "num_draft_tokens"),
    ("vllm:spec_decode_num_accepted_tokens", "Drafted tokens kept.", "num_accepted_tokens"),
    ("glm_portable_engine_steps", "Steps computed.", "steps"),
    ("glm_portable_engine_failed_steps", "Steps that failed.", "failed_steps"),
)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
_DURATIONS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        model_name: str,
        requests: RequestMetrics,
        cache_config: Mapping[str, str],
        engine_pid: int | None = None,
    ) -> None:
        """requests: the engine's observer. cache_config: facts for cache_config_info.

        engine_pid: of the engine's process, if it has one of its own.
        """
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(stats, model_name, requests, cache_config))
        ProcessCollector(registry=self._registry)
        if engine_pid is not None:
            ProcessCollector("glm_portable_engine", lambda: engine_pid, registry=self._registry)
        own: Any = {"registry": self._registry}
        self._answers = Counter(
            "glm_portable_http_requests",
            "HTTP requests answered; status 499: the client left before.",
            ["method", "path", "status"],
            **own,
        )
        self._durations = Histogram(
            "glm_portable_http_request_duration_seconds",
            "From the request's headers to the last byte of the answer.",
            ["path"],
            buckets=_DURATIONS,
            **own,
        )
        self._errors = Counter(
            "glm_portable_http_errors",
            "Requests that got an error, by its code.",
            ["code"],
            **own,
        )
        self._choices = Histogram(
            "vllm:request_params_n",
            "Choices asked for.",
            ["model_name", "engine"],
            buckets=(1, 2, 5, 10, 20),
            **own,
        ).labels(model_name, "0")
        self.in_progress = Gauge(
            "glm_portable_http_requests_in_progress", "HTTP requests being answered.", **own
        )

    def count(self, exchange: Exchange, route: str) -> None:
        """A request is over. route: its path's template, so that a client cannot invent labels."""
        self.in_progress.dec()
        method = exchange.method if exchange.method in _METHODS else "other"
        self._answers.labels(method, route, str(exchange.status)).inc()
        self._durations.labels(route).observe(exchange.seconds)
        if exchange.error is not None:
            self._errors.labels(exchange.error).inc()
        if exchange.choices:
            self._choices.observe(exchange.choices)

    def text(self) -> bytes:
        """As Prometheus reads it (text format 0.0.4)."""
        return generate_latest(self._registry)


class EngineCollector(Collector):
    """Looks at the engine when Prometheus asks."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        model_name: str,
        requests: RequestMetrics,
        cache_config: Mapping[str, str],
    ) -> None:
        self._stats, self._requests, self._cache_config = stats, requests, cache_config
        self._labels = {"model_name": model_name, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, field in _GAUGES:
            yield self._gauge(name, text, getattr(stats, field))
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Waiting requests; here all of them wait for room.",
            labels=[*self._labels, "reason"],
        )
        waiting.add_metric([*self._labels.values(), "capacity"], stats.waiting)
        waiting.add_metric([*self._labels.values(), "deferred"], 0)
        yield waiting
        used = stats.pages_used / max(1, stats.pages_total)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the cache in use, 0 to 1.", used)
        healthy = float(stats.healthy)
        yield self._gauge("glm_portable_engine_healthy", "0 after several failed steps.", healthy)
        for name, text, field in _COUNTERS:
            yield self._counter(name, text, getattr(stats, field))
        accepted = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens kept, by their place in the draft, from 0.",
            labels=[*self._labels, "position"],
        )
        for position, count in enumerate(stats.accepted_by_position):
            accepted.add_metric([*self._labels.values(), str(position)], count)
        yield accepted
        yield self._info()
        yield from self._requests.families(self._labels)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _info(self) -> Metric:
        facts = dict(self._cache_config) | {"engine": "0"}
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache: its facts are the labels.", labels=list(facts)
        )
        family.add_metric(list(facts.values()), 1)
        return family
