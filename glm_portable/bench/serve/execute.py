"""`bench serve`, from its options to the table: find the model, make prompts, measure, report."""

import asyncio
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

from glm_portable.bench.serve import drafts, report, tokens
from glm_portable.bench.serve.connection import Address, Pool
from glm_portable.bench.serve.metrics import METRICS, OBJECTIVES, summarize
from glm_portable.bench.serve.run import Run, Target, measure, warm_up
from glm_portable.bench.serve.stream import Record
from glm_portable.bench.serve.workload import (
    Prompt,
    RandomLengths,
    arrivals,
    random_prompts,
    sharegpt_prompts,
)
from glm_portable.errors import UsageError

ENDPOINTS = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}


@dataclass(frozen=True)
class Options:
    """What vLLM's flags of the same names say."""

    backend: str = "openai"
    url: str = "http://127.0.0.1:8000"
    endpoint: str | None = None
    model: str | None = None
    served_model_name: str | None = None
    tokenizer: str | None = None
    dataset_name: str = "random"
    dataset_path: Path | None = None
    lengths: RandomLengths = RandomLengths()
    sharegpt_output_len: int | None = None
    num_prompts: int = 1000
    num_warmups: int = 0
    max_concurrency: int | None = None
    request_rate: float = math.inf
    burstiness: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    insecure: bool = False
    ready_check_timeout_sec: float = 0
    metrics: Sequence[str] = ("ttft", "tpot", "itl")
    percentiles: Sequence[float] = (99.0,)
    goodput: Mapping[str, float] = field(default_factory=dict)
    label: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    save_result: bool = False
    save_detailed: bool = False
    result_dir: Path | None = None
    result_filename: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.backend not in ENDPOINTS:
            raise UsageError(f"--backend {self.backend!r} is not one of {', '.join(ENDPOINTS)}.")
        if self.num_prompts < 1 or self.num_warmups < 0:
            raise UsageError("--num-prompts must be at least 1, --num-warmups at least 0.")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise UsageError(f"--max-concurrency {self.max_concurrency} must be at least 1.")
        if self.request_rate <= 0 or self.burstiness <= 0:
            raise UsageError("--request-rate and --burstiness must be above 0.")
        for name in self.metrics:
            if name not in METRICS:
                raise UsageError(f"--percentile-metrics {name!r}: use {', '.join(METRICS)}.")
        for percentile in self.percentiles:
            if not 0 <= percentile <= 100:
                raise UsageError(f"--metric-percentiles {percentile:g} is not in 0 to 100.")
        for name, value in self.goodput.items():
            if name not in OBJECTIVES or value < 0:
                raise UsageError(
                    f"--goodput {name}:{value:g}: use {', '.join(OBJECTIVES)} and milliseconds "
                    "of at least 0, such as ttft:500."
                )

    @property
    def chat(self) -> bool:
        return self.backend == "openai-chat"

    @property
    def path(self) -> str:
        path = self.endpoint or ENDPOINTS[self.backend]
        suffix = "chat/completions" if self.chat else "completions"
        if not path.endswith(suffix) or (not self.chat and path.endswith("chat/completions")):
            raise UsageError(f"--endpoint {path} does not fit --backend {self.backend}.")
        return path if path.startswith("/") else f"/{path}"


def run_bench_serve(options: Options, console: Console | None = None) -> int:
    """Measure and print; returns 1 if any request failed. Raises UsageError."""
    console = console or Console(highlight=False, soft_wrap=True)
    address, path = Address.parse(options.url), options.path
    headers = _key() | dict(options.headers)
    with httpx.Client(
        base_url=address.url, headers=headers, timeout=60, verify=not options.insecure
    ) as http:
        model = options.served_model_name or options.model or _first_model(http)
        source = tokens.find(options.tokenizer, http, model, options.seed)
        prompts = _prompts(options, source)
        console.print(f"{len(prompts)} prompts for {model} at {address.url}{path}; {source.name}")
        asked = _Asked(address, path, model, headers, prompts)
        run, before = asyncio.run(_measure(options, asked, lambda: drafts.counts(http)))
        result = summarize(
            run.records,
            run.duration,
            metrics=options.metrics,
            percentiles=options.percentiles,
            goodput=options.goodput,
        ) | drafts.summarize(before, drafts.counts(http))
    _print(options, run, result, console)
    if options.save_result:
        setup = _setup(options, model, source.name)
        report.save(_file(options, setup), setup, result | _client(run), options.save_detailed)
    return 1 if result["failed"] else 0


def _prompts(options: Options, source: tokens.Tokens) -> list[Prompt]:
    if options.dataset_name == "random":
        return random_prompts(
            options.num_prompts, options.lengths, source, options.seed, as_ids=not options.chat
        )
    if options.dataset_path is None:
        raise UsageError("--dataset-name sharegpt needs the file: name it with --dataset-path.")
    return sharegpt_prompts(
        options.dataset_path,
        options.num_prompts,
        source,
        options.seed,
        options.sharegpt_output_len,
    )


@dataclass(frozen=True)
class _Asked:
    """What goes where."""

    address: Address
    path: str
    model: str
    headers: Mapping[str, str]
    prompts: Sequence[Prompt]

    def target(self, pool: Pool, options: Options) -> Target:
        fields = options.ignore_eos, options.extra_body
        return Target(pool, self.path, options.chat, self.model, self.headers, *fields)


async def _measure(
    options: Options, asked: _Asked, count_drafts: Callable[[], drafts.Counts | None]
) -> tuple[Run, drafts.Counts | None]:
    """The run, and the server's counters between the warm-up and it."""
    prompts = asked.prompts
    pool = Pool(asked.address, verify=not options.insecure)
    target = asked.target(pool, options)
    times = list(arrivals(len(prompts), options.request_rate, options.burstiness, options.seed))
    try:
        if options.ready_check_timeout_sec > 0:
            await _until_ready(target, prompts[0], options.ready_check_timeout_sec)
        if options.num_warmups:
            await warm_up(target, prompts[0], options.num_warmups, options.max_concurrency)
        before = count_drafts()
        gc.collect()
        gc.freeze()  # so that collecting garbage does not look at the prompts again and again
        shown = options.progress and sys.stderr.isatty()
        with Progress(console=Console(stderr=True), transient=True, disable=not shown) as progress:
            task = progress.add_task("asking", total=len(prompts))
            run = await measure(
                target, prompts, times, options.max_concurrency, lambda: progress.advance(task)
            )
            return run, before
    finally:
        gc.unfreeze()
        pool.close()


async def _until_ready(target: Target, prompt: Prompt, timeout: float) -> None:
    """Ask until an answer comes."""
    end = time.monotonic() + timeout
    while not (record := await target.ask(prompt)).success:
        if time.monotonic() > end:
            raise UsageError(f"the server was not ready after {timeout:g} s: {record.error}.")
        await asyncio.sleep(1)


def _print(options: Options, run: Run, result: Mapping[str, Any], console: Console) -> None:
    def show(line: str) -> None:
        console.print(line, markup=False)

    for line in report.lines(
        result,
        metrics=options.metrics,
        percentiles=options.percentiles,
        max_concurrency=options.max_concurrency,
        request_rate=options.request_rate,
    ):
        show(line)
    if result["failed"]:
        show("Failed requests, by reason:")
        for line in report.failures(result["errors"]):
            show(line)
    events = sum(1 + len(record.itl) for record in run.records if record.success)
    show(
        f"Client: {run.lag.cpu_share:.0%} of a core, {1e6 * run.lag.cpu_s / max(1, events):.0f} us "
        f"an event, event loop {run.lag.p99_ms:.1f} ms late (99 %)"
    )
    warnings = [run.lag.warning(), _uncounted(run.records)]
    for warning in filter(None, warnings):
        show(f"WARNING: {warning}")


def _uncounted(records: Sequence[Record]) -> str | None:
    missing = sum(record.success and record.output_tokens is None for record in records)
    if not missing:
        return None
    return f"{missing} answers came without usage; each of their events counts as one token."


def _client(run: Run) -> dict[str, float]:
    return {"client_cpu_share": run.lag.cpu_share, "client_loop_p99_late_ms": run.lag.p99_ms}


def _setup(options: Options, model: str, tokenizer: str) -> dict[str, Any]:
    rate = options.request_rate
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": options.model or model,
        "tokenizer_id": options.tokenizer or tokenizer,
        "num_prompts": options.num_prompts,
        **options.metadata,
        "request_rate": "inf" if math.isinf(rate) else rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
    }


def _file(options: Options, setup: Mapping[str, Any]) -> Path:
    limit = options.max_concurrency
    at_once = "" if limit is None else f"-concurrency{limit}"
    model = str(setup["model_id"]).split("/")[-1]
    name = f"{options.label or options.backend}-{options.request_rate}qps{at_once}-{model}"
    name = options.result_filename or f"{name}-{setup['date']}.json"
    return (options.result_dir or Path()) / name


def _first_model(http: httpx.Client) -> str:
    try:
        return str(http.get("/v1/models").raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise UsageError(
            f"{http.base_url} names no model at /v1/models ({error}): start the server, or name "
            "the model with --model."
        ) from None


def _key() -> dict[str, str]:
    """vLLM's tool takes the key from there."""
    key = os.environ.get("OPENAI_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def parse_pairs(option: str, pairs: Sequence[str], separator: str) -> dict[str, str]:
    """["a=1", "b=2"] -> {"a": "1", "b": "2"}. Raises UsageError."""
    found = {}
    for pair in pairs:
        name, given, value = pair.partition(separator)
        if not given or not name.strip():
            raise UsageError(f"{option} {pair!r} must be NAME{separator}VALUE.")
        found[name.strip()] = value.strip()
    return found


def parse_numbers(option: str, text: str) -> list[float]:
    """ "25,50,99.9" -> [25.0, 50.0, 99.9]. Raises UsageError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r} must be numbers such as 50,99.") from None


def parse_object(option: str, text: str | None) -> dict[str, Any]:
    """A JSON object. Raises UsageError."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"{option} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UsageError(f"{option} must be a JSON object, not {value!r}.")
    return value
