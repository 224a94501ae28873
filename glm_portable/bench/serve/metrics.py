"""From the records of a run to vLLM's figures, under vLLM's names.

TTFT: from sending to the first event. ITL: between two events of a stream, over all streams. TPOT:
of each request with two or more tokens, (latency - TTFT) / (tokens - 1). E2EL: the latency.
Standard deviations are the population's; percentiles interpolate linearly (numpy's default).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glm_portable.bench.serve.stream import Record

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
OBJECTIVES = ("ttft", "tpot", "e2el")
"""What goodput can ask of a request, in milliseconds."""

Count = Callable[[Record], int]


def counted(record: Record) -> int:
    """Output tokens by the server's usage; without one, an event counts as a token."""
    return 1 + len(record.itl) if record.output_tokens is None else record.output_tokens


def summarize(
    records: Sequence[Record],
    duration: float,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    percentiles: Sequence[float] = (99,),
    goodput: Mapping[str, float] | None = None,
    count: Count = counted,
) -> dict[str, Any]:
    """The figures of a run of `duration` seconds. goodput: objective to milliseconds."""
    good = [record for record in records if record.success]
    lengths = [count(record) if record.success else 0 for record in records]
    inputs, outputs = sum(record.prompt_len for record in good), sum(lengths)
    samples = {
        "ttft": [record.ttft for record in good],
        "tpot": [tpot(r, count(r)) for r in good if count(r) > 1],
        "itl": [gap for record in good for gap in record.itl],
        "e2el": [record.latency for record in good],
    }
    met = sum(_meets(record, count(record), goodput or {}) for record in good)
    tokens_peak, requests_peak = _peaks(good)
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(records) - len(good),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / duration,
        "request_goodput": met / duration if goodput else None,
        "output_throughput": outputs / duration,
        "total_token_throughput": (inputs + outputs) / duration,
        "input_lens": [record.prompt_len for record in records],
        "output_lens": lengths,
        "ttfts": [record.ttft for record in records],
        "itls": [record.itl for record in records],
        "start_times": [record.start_time for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
        "max_output_tokens_per_s": tokens_peak,
        "max_concurrent_requests": requests_peak,
    }
    for name in metrics:
        result |= _spread(name, samples[name], percentiles)
    return result


def tpot(record: Record, tokens: int) -> float:
    """Seconds an output token after the first; 0 where there is none."""
    return (record.latency - record.ttft) / (tokens - 1) if tokens > 1 else 0.0


def percentile_word(percentile: float) -> str:
    """99.0 -> "99", 99.9 -> "99.9": as in the names of vLLM's fields."""
    return f"{int(percentile)}" if percentile == int(percentile) else f"{percentile}"


def _spread(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    ms = np.asarray(seconds or [0.0]) * 1000
    fields = {
        f"mean_{name}_ms": float(ms.mean()),
        f"median_{name}_ms": float(np.median(ms)),
        f"std_{name}_ms": float(ms.std()),
    }
    for p in percentiles:
        fields[f"p{percentile_word(p)}_{name}_ms"] = float(np.percentile(ms, p))
    return fields


def _meets(record: Record, tokens: int, goodput: Mapping[str, float]) -> bool:
    seconds = {"ttft": record.ttft, "tpot": tpot(record, tokens), "e2el": record.latency}
    return all(seconds[name] <= limit / 1000 for name, limit in goodput.items())


def _peaks(records: Sequence[Record]) -> tuple[float, int]:
    """Most events and most requests under way within one second of the run, as vLLM counts them."""
    if not records:
        return 0.0, 0
    begin = min(record.start_time for record in records)
    end = max(record.start_time + record.latency for record in records)
    events = np.zeros(math.ceil(end - begin) + 1)
    running = np.zeros_like(events)
    for record in records:
        offset = record.start_time - begin
        times = offset + record.ttft + np.cumsum([0.0, *record.itl])
        np.add.at(events, np.minimum(times.astype(int), len(events) - 1), 1)
        running[int(offset) : int(offset + record.latency) + 1] += 1
    return float(events.max()), int(running.max())
