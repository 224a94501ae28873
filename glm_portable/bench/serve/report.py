"""The table in vLLM's layout, and the JSON file under vLLM's names."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glm_portable.bench.serve import drafts
from glm_portable.bench.serve.metrics import METRICS, percentile_word
from glm_portable.errors import UsageError

DETAILS = (
    "input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors",
)  # fmt: skip
"""One entry a request: only with --save-detailed."""
_WIDTH = 50


def lines(
    result: Mapping[str, Any],
    *,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    max_concurrency: int | None = None,
    request_rate: float = float("inf"),
) -> Iterator[str]:
    """The report, line by line."""
    yield " Serving Benchmark Result ".center(_WIDTH, "=")
    yield _row("Successful requests:", result["completed"])
    yield _row("Failed requests:", result["failed"])
    if max_concurrency is not None:
        yield _row("Maximum request concurrency:", max_concurrency)
    if request_rate != float("inf"):
        yield _row("Request rate configured (RPS):", request_rate)
    yield _row("Benchmark duration (s):", result["duration"])
    yield _row("Total input tokens:", result["total_input_tokens"])
    yield _row("Total generated tokens:", result["total_output_tokens"])
    yield _row("Request throughput (req/s):", result["request_throughput"])
    if result["request_goodput"] is not None:
        yield _row("Request goodput (req/s):", result["request_goodput"])
    yield _row("Output token throughput (tok/s):", result["output_throughput"])
    yield _row("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"])
    yield _row("Peak concurrent requests:", float(result["max_concurrent_requests"]))
    yield _row("Total token throughput (tok/s):", result["total_token_throughput"])
    for name in metrics:
        short, long = METRICS[name]
        yield long.center(_WIDTH, "-")
        yield _row(f"Mean {short} (ms):", result[f"mean_{name}_ms"])
        yield _row(f"Median {short} (ms):", result[f"median_{name}_ms"])
        for p in map(percentile_word, percentiles):
            yield _row(f"P{p} {short} (ms):", result[f"p{p}_{name}_ms"])
    of_drafts = [_row(*row) for row in drafts.rows(result)]
    if of_drafts:
        yield "Speculative Decoding".center(_WIDTH, "-")
        yield from of_drafts
    yield "=" * _WIDTH


def failures(errors: Sequence[str], most: int = 10) -> Iterator[str]:
    """The reasons of failed requests, the commonest first."""
    counts = Counter(error for error in errors if error)
    for reason, count in counts.most_common(most):
        yield f"  {count} x {reason}"
    if len(counts) > most:
        yield f"  and {len(counts) - most} other reasons"


def save(path: Path, setup: Mapping[str, Any], result: Mapping[str, Any], detailed: bool) -> None:
    """Write one JSON object. Raises UsageError if it cannot be written."""
    left_out = () if detailed else DETAILS
    body = {**setup, **{k: v for k, v in result.items() if k not in left_out}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}).") from None


def _row(name: str, value: float | int | str) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else f"{value}"
    return f"{name:<40} {shown:<10}".rstrip()
