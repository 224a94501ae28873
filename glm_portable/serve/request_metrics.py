"""Times and sizes of requests, seen on the engine's thread, under vLLM's names and buckets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, Metric

from glm_portable.engine.observer import FinishedRequest
from glm_portable.serve.histogram import Histogram

_LATENCIES = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920),
    7680,
)
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20),
    *(40, 80, 160, 640, 2560),
)
_PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40),
    80,
)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_REASONS = ("stop", "length", "abort", "error")


def steps_1_2_5(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `largest`."""
    powers = (10**exponent for exponent in range(len(str(largest))))
    return [step for power in powers for step in (power, 2 * power, 5 * power) if step <= largest]


@dataclass(frozen=True)
class Observed:
    """All that was seen. ended: requests by reason. histograms: see `Histogram.state`."""

    ended: dict[str, int]
    histograms: list[tuple[list[int], float]]


class RequestMetrics:
    """An observer of the engine that keeps histograms."""

    def __init__(self, max_model_len: int) -> None:
        counts = steps_1_2_5(max_model_len)
        self._all: list[Histogram] = []
        add = self._add
        self._first_token = add(
            "time_to_first_token_seconds", "From arrival to first token.", _FIRST_TOKEN
        )
        self._between = add(
            "inter_token_latency_seconds",
            "Between the tokens of one answer; tokens that come together count once.",
            _PER_TOKEN,
        )
        self._per_token = add(
            "request_time_per_output_token_seconds",
            "Mean time per token of a request, without the first.",
            _PER_TOKEN,
        )
        self._e2e = add("e2e_request_latency_seconds", "From arrival to last token.", _LATENCIES)
        self._queue = add(
            "request_queue_time_seconds", "From arrival to the first step.", _LATENCIES
        )
        self._inference = add(
            "request_inference_time_seconds", "From the first step to the last token.", _LATENCIES
        )
        self._prefill = add(
            "request_prefill_time_seconds", "From the first step to the first token.", _LATENCIES
        )
        self._decode = add(
            "request_decode_time_seconds", "From the first to the last token.", _LATENCIES
        )
        self._prompt = add("request_prompt_tokens", "Tokens of the prompt.", counts)
        self._computed = add(
            "request_prefill_kv_computed_tokens", "Tokens of the prompt not cached before.", counts
        )
        self._generated = add("request_generation_tokens", "Tokens of the answer.", counts)
        self._max_tokens = add("request_params_max_tokens", "max_tokens, where it is set.", counts)
        self._step = add("iteration_tokens_total", "Tokens computed in a step.", _STEP_TOKENS)
        self._ended: dict[str, int] = dict.fromkeys(_REASONS, 0)

    def _add(
        self, name: str, documentation: str, bounds: "tuple[float, ...] | list[int]"
    ) -> Histogram:
        histogram = Histogram(f"vllm:{name}", documentation, bounds)
        self._all.append(histogram)
        return histogram

    def on_step(self, num_tokens: int) -> None:
        self._step.observe(num_tokens)

    def on_tokens(self, first: Sequence[float], following: Sequence[float]) -> None:
        self._first_token.observe_all(first)
        self._between.observe_all(following)

    def on_finish(self, request: FinishedRequest) -> None:
        self._ended[request.reason] += 1
        self._prompt.observe(request.num_prompt_tokens)
        self._computed.observe(request.num_prompt_tokens - request.num_cached)
        self._generated.observe(request.num_generated)
        if request.max_tokens is not None:
            self._max_tokens.observe(request.max_tokens)
        times = request.timeline
        if times.scheduled is None or times.first_token is None or times.last_token is None:
            return  # cancelled or failed before its first token
        decode = times.last_token - times.first_token
        self._queue.observe(times.scheduled - times.arrived)
        self._prefill.observe(times.first_token - times.scheduled)
        self._decode.observe(decode)
        self._inference.observe(times.last_token - times.scheduled)
        self._e2e.observe(times.last_token - times.arrived)
        if request.num_generated > 1:
            self._per_token.observe(decode / (request.num_generated - 1))

    @property
    def state(self) -> Observed:
        """As of now, for another process."""
        return Observed(dict(self._ended), [histogram.state for histogram in self._all])

    @state.setter
    def state(self, seen: Observed) -> None:
        self._ended = {reason: seen.ended[reason] for reason in _REASONS}
        for histogram, state in zip(self._all, seen.histograms, strict=True):
            histogram.state = state

    def families(self, labels: Mapping[str, str]) -> Iterator[Metric]:
        """All of it as of now, for Prometheus. May be called from any thread."""
        ended = CounterMetricFamily(
            "vllm:request_success",
            "Requests that ended.",
            labels=[*labels, "finished_reason"],
        )
        for reason, count in self._ended.items():
            ended.add_metric([*labels.values(), reason], count)
        yield ended
        for histogram in self._all:
            yield histogram.family(labels)
