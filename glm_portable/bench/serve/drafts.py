"""What the server's drafts did in a run: its counters after it, less those before.

Names of metrics, of the report and of the file are vLLM's. Whoever else uses the server meanwhile
is counted, too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "vllm:spec_decode_num_"
_BY_POSITION = f"{PREFIX}accepted_tokens_per_pos_total"

Counts = Mapping[str, float]
"""By the metric's name, and for one by position by its name and the position; over all engines."""


def counts(http: httpx.Client) -> Counts | None:
    """The counters as of now; None of a server that has none, because it drafts nothing."""
    try:
        text = http.get("/metrics").raise_for_status().text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    except (httpx.HTTPError, ValueError):
        return None  # another server may have no /metrics, or not in this format
    found: dict[str, float] = {}
    for sample in samples:
        if sample.name.startswith(PREFIX) and sample.name.endswith("_total"):
            name = sample.name + sample.labels.get("position", "")
            found[name] = found.get(name, 0) + sample.value
    return found or None


def summarize(before: Counts | None, after: Counts | None) -> dict[str, Any]:
    """The fields of the result; none of a run without a draft."""
    if after is None:
        return {}
    grown = {name: value - (before or {}).get(name, 0) for name, value in after.items()}
    names = ("drafts", "draft_tokens", "accepted_tokens")
    drafts, tokens, accepted = (int(grown.get(f"{PREFIX}{name}_total", 0)) for name in names)
    if not drafts or not tokens:
        return {}
    positions = sum(name.startswith(_BY_POSITION) for name in after)
    return {
        "spec_decode_acceptance_rate": 100 * accepted / tokens,
        "spec_decode_acceptance_length": 1 + accepted / drafts,
        "spec_decode_num_drafts": drafts,
        "spec_decode_draft_tokens": tokens,
        "spec_decode_accepted_tokens": accepted,
        "spec_decode_per_position_acceptance_rates": [
            grown[f"{_BY_POSITION}{i}"] / drafts for i in range(positions)
        ],
    }


def rows(result: Mapping[str, Any]) -> Iterator[tuple[str, float | int | str]]:
    """(label, value) for the table; none without drafts."""
    if "spec_decode_num_drafts" not in result:
        return
    yield "Acceptance rate (%):", result["spec_decode_acceptance_rate"]
    yield "Acceptance length:", result["spec_decode_acceptance_length"]
    yield "Drafts:", result["spec_decode_num_drafts"]
    yield "Draft tokens:", result["spec_decode_draft_tokens"]
    yield "Accepted tokens:", result["spec_decode_accepted_tokens"]
    yield "Per-position acceptance (%):", ""
    for position, rate in enumerate(result["spec_decode_per_position_acceptance_rates"]):
        yield f"  Position {position}:", 100 * rate
