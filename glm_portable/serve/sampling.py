"""A request's sampling fields as the engine's parameters."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from glm_portable.engine.types import SamplingParams
from glm_portable.errors import UsageError
from glm_portable.serve.protocol import ChatRequest, CompletionRequest

_SAME_NAME = (
    *("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "seed", "min_tokens", "stop", "ignore_eos"),
)
_SEEDS = 2**63


def sampling_params(
    request: ChatRequest | CompletionRequest, defaults: SamplingParams
) -> SamplingParams:
    """What the request asks for, and `defaults` for what it leaves out."""
    asked = {name: getattr(request, name) for name in _SAME_NAME}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if request.top_k is not None:
        given["top_k"] = max(0, request.top_k)  # -1 is off as well
    if request.stop_token_ids:
        given["stop_token_ids"] = tuple(request.stop_token_ids)
    if request.output_limit is not None:
        given["max_tokens"] = request.output_limit
    asked_of_prompt = request.prompt_logprob_count
    return replace(
        defaults, logprobs=request.logprob_count, prompt_logprobs=asked_of_prompt, **given
    )


def for_each_choice(params: SamplingParams, n: int) -> Iterator[SamplingParams]:
    """`n` choices of one prompt differ in nothing but their seeds."""
    for index in range(n):
        seed = params.seed
        yield params if seed is None else replace(params, seed=(seed + index) % _SEEDS)


def defaults_of(folder: Path) -> SamplingParams:
    """The sampling fields of generation_config.json; GLM's own file has none of them."""
    path = folder / "generation_config.json"
    if not path.exists():
        return SamplingParams()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error}): download it again.") from None
    fields = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return SamplingParams(**{f: raw[f] for f in fields if raw.get(f) is not None})
