"""`bench soak`, from its options to the verdict."""

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from glm_portable.bench.soak.memory import resident_mib
from glm_portable.bench.soak.run import Found, soak
from glm_portable.bench.soak.verdict import violations
from glm_portable.errors import UsageError
from glm_portable.evaluate import Endpoint
from glm_portable.evaluate.command import run_evaluate


@dataclass(frozen=True)
class Options:
    """Named as the flags. warm_up_minutes None: a quarter of minutes."""

    base_url: str
    minutes: float = 20.0
    clients: int = 16
    pid: int | None = None
    model: str | None = None
    api_key: str | None = None
    warm_up_minutes: float | None = None
    max_drift: float = 0.02
    max_unlike: float = 0.01
    evaluate_samples: int = 10
    json_path: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf or self.clients < 1 or self.evaluate_samples < 0:
            raise UsageError("--minutes must be above 0, --clients at least 1.")
        if self.warm_up_minutes is not None and not 0 <= self.warm_up_minutes < self.minutes:
            raise UsageError("--warm-up-minutes must be less than --minutes.")

    @property
    def warm_up(self) -> float:
        """Seconds."""
        minutes = self.minutes / 4 if self.warm_up_minutes is None else self.warm_up_minutes
        return 60 * minutes


def run_bench_soak(options: Options, console: Console | None = None) -> int:
    """Load the server and print what was found; returns 1 on any violation. Raises UsageError."""
    console = console or Console(soft_wrap=True, highlight=False)
    if options.pid is not None:
        resident_mib(options.pid)  # a wrong one shows at once, not after twenty minutes
    with Endpoint(options.base_url, model=options.model, api_key=options.api_key) as endpoint:

        def score() -> Mapping[str, Any] | None:
            if not options.evaluate_samples:
                return None
            return run_evaluate(
                endpoint, samples=options.evaluate_samples, console=console
            ).to_json()

        before = score()
        found = asyncio.run(_soak(options, endpoint.url, endpoint.model))
        after = score()
    wrong = list(
        violations(
            found,
            warm_up=options.warm_up,
            max_drift=options.max_drift,
            max_unlike=options.max_unlike,
            before=before,
            after=after,
        )
    )
    _print(found, options, wrong, console)
    if options.json_path is not None:
        report = {
            "options": {
                k: v for k, v in asdict(options).items() if k not in ("json_path", "api_key")
            },
            "violations": wrong,
            "asked": found.tally.asked,
            "tokens": found.tally.tokens,
            "unlike": found.tally.unlike,
            "examples": found.tally.examples,
            "memory_mib": list(zip(found.memory.times, found.memory.sizes, strict=True)),
            "metrics": found.metrics,
        }
        options.json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


async def _soak(options: Options, url: str, model: str) -> Found:
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=options.clients + 1)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=300) as http:
        return await soak(
            http, model, seconds=60 * options.minutes, clients=options.clients, pid=options.pid
        )


def _print(found: Found, options: Options, wrong: list[str], console: Console) -> None:
    def show(line: str) -> None:
        console.print(line, markup=False)

    tally, memory = found.tally, found.memory
    total = sum(tally.asked.values())
    show(
        f"requests         {total:,} in {found.seconds / 60:.1f} minutes, {options.clients} at once"
    )
    show(f"tokens           {tally.tokens:,}, {tally.tokens / found.seconds:,.0f} a second")
    for kind, count in sorted(tally.asked.items()):
        show(f"  {kind:<14} {count:,}")
    for kind, reason in found.refused.items():
        show(f"not supported    {kind}: {reason}")
    kinds = ", ".join(f"{kind} {count}" for kind, count in tally.unlike.most_common())
    show(f"unlike alone     {tally.unlike.total()} of {tally.compared:,} {kinds}".rstrip())
    for example in tally.examples:
        show(f"  {example}")
    if memory.sizes:
        every = max(1, len(memory.sizes) // 12)
        series = " ".join(f"{size:.0f}" for size in memory.sizes[::every])
        drift = memory.drift(options.warm_up)
        show(f"server RSS MiB   {series}; {drift:+.2%} after the warm-up")
    else:
        show("server RSS MiB   not watched: name the server's process with --pid")
    if found.metrics is None:
        show("after the load   not checked: the server has no /metrics")
    else:
        show("after the load   " + ", ".join(f"{k} {v:g}" for k, v in found.metrics.items()))
    for line in wrong:
        show(f"VIOLATION        {line}")
    show("FAILED" if wrong else "passed")
