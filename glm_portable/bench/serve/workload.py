"""The prompts of a run, and when each of them is sent; both depend on the seed alone."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glm_portable.bench.serve.tokens import Tokens
from glm_portable.errors import UsageError

_ATTEMPTS = 10


@dataclass(frozen=True)
class Prompt:
    """What to ask: text, or token ids for an endpoint that takes them."""

    content: str | list[int]
    tokens: int
    max_tokens: int


@dataclass(frozen=True)
class RandomLengths:
    """vLLM's options of the same names: each length is uniform within +- range_ratio of its mean.

    prefix_len: tokens that all prompts begin with, on top of input_len.
    """

    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.range_ratio < 1:
            raise UsageError(f"--random-range-ratio {self.range_ratio} is not in [0, 1).")
        if self.input_len < 1 or self.output_len < 1 or self.prefix_len < 0:
            raise UsageError("--random-input-len and --random-output-len must be at least 1.")

    def draw(self, rng: np.random.Generator, mean: int, count: int) -> list[int]:
        low, high = mean * (1 - self.range_ratio), mean * (1 + self.range_ratio)
        drawn: list[int] = rng.integers(
            max(1, math.floor(low)), math.ceil(high) + 1, count
        ).tolist()
        return drawn


def random_prompts(
    count: int, lengths: RandomLengths, tokens: Tokens, seed: int, *, as_ids: bool
) -> list[Prompt]:
    """Prompts of random tokens. as_ids: send the ids themselves, whose number is exact."""
    rng = np.random.default_rng(seed)
    prefix = rng.choice(tokens.ids, lengths.prefix_len).tolist()
    inputs = lengths.draw(rng, lengths.input_len, count)
    outputs = lengths.draw(rng, lengths.output_len, count)
    prompts = []
    for size, answer in zip(inputs, outputs, strict=True):
        ids = prefix + rng.choice(tokens.ids, size).tolist()
        content, found = (ids, len(ids)) if as_ids else _as_text(ids, tokens, rng)
        prompts.append(Prompt(content, found, answer))
    return prompts


def _as_text(ids: list[int], tokens: Tokens, rng: np.random.Generator) -> tuple[str, int]:
    """Text of as many tokens: joining pieces changes how they are cut, so it is cut to fit."""
    goal, text, found = len(ids), "", 0
    for _ in range(_ATTEMPTS):
        text = tokens.decode(ids)
        ids = tokens.encode(text)
        found = len(ids)
        if found == goal:
            break
        ids = ids[:goal] + rng.choice(tokens.ids, max(0, goal - found)).tolist()
    return text, found


def sharegpt_prompts(
    path: Path, count: int, tokens: Tokens, seed: int, output_len: int | None
) -> list[Prompt]:
    """First turns of conversations, answered at the length of the second ones.

    Kept, as in vLLM: 4 to 1,024 tokens of prompt, 4 or more of answer, 2,048 together.
    """
    talks = _conversations(path)
    np.random.default_rng(seed).shuffle(talks)
    prompts: list[Prompt] = []
    for asked, answered in talks:
        if len(prompts) == count:
            break
        size = len(tokens.encode(asked))
        answer = output_len or len(tokens.encode(answered))
        enough = size >= 4 and (output_len is not None or answer >= 4)
        if enough and size <= 1024 and size + answer <= 2048:
            prompts.append(Prompt(asked, size, answer))
    if not prompts:
        raise UsageError(f"--dataset-path {path} has no conversation of a fitting length.")
    drawn = len(prompts)
    return [prompts[i % drawn] for i in range(count)]  # vLLM repeats a short data set too


def _conversations(path: Path) -> list[tuple[str, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        turns = [entry["conversations"] for entry in entries if len(entry["conversations"]) >= 2]
        return [(first["value"], second["value"]) for first, second, *_ in turns]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--dataset-path {path} is no ShareGPT file, a JSON list of objects with "
            f'"conversations": {error!r}.'
        ) from None


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which each request is sent; all at once at an infinite rate.

    Gaps are gamma distributed with shape `burstiness` (1: a Poisson process), and scaled so that
    the last request is sent after count / rate seconds, as vLLM does.
    """
    if math.isinf(rate):
        return iter([0.0] * count)
    gaps: Sequence[float] | Any
    if math.isinf(burstiness):
        gaps = np.full(count, 1 / rate)
    else:
        shape = np.random.default_rng(seed)
        gaps = shape.gamma(burstiness, 1 / (rate * burstiness), count)
    times = np.cumsum(gaps)
    return iter((times * (count / rate / times[-1])).tolist())
