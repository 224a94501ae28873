"""Abuse a server of your own, and check that it stays one.

    python -m tools.abuse http://127.0.0.1:8000 --pid PID

Malformed, mistyped, oversized and deep bodies, schemas and templates made to explode, broken HTTP,
slow writers and readers, 500 clients that leave, 200 at once. All the while no answer may be a 5xx
and /health answers within two seconds. After each, a question is answered as before it and, where
the server has /metrics, no request runs and no page of the KV cache is in use. The whole is done
twice, and the second time may not add to the server's memory; before the first one, long prompts
fill the KV cache, which takes its memory as it is used. Exit code 1 if anything was wrong.
"""

import argparse
import asyncio
import math
import re
import sys
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx

from glm_portable.bench.soak.memory import resident_mib
from tools.abuse import bodies, connections
from tools.abuse.connections import ANSWERED
from tools.abuse.target import CHAT, PATIENCE_S, QUESTION, HealthWatch, Target

Attack = Callable[[Target, int], Awaitable[None]]
ATTACKS: tuple[Attack, ...] = (
    bodies.malformed,
    bodies.wrong_types,
    bodies.odd_numbers,
    bodies.odd_texts,
    bodies.control_tokens,
    bodies.large,
    bodies.schema_bombs,
    bodies.template_bombs,
    connections.too_large,
    connections.odd_http,
    connections.slow_writers,
    connections.slow_readers,
    connections.disconnects,
    connections.two_hundred_at_once,
)
HEALTH_S = 2.0
MEMORY_DRIFT = 0.05
IDLE = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


async def abuse(
    url: str,
    share: int = 1,
    pid: int | None = None,
    rounds: int = 2,
    health_s: float = HEALTH_S,
    idle: tuple[str, ...] = IDLE,
) -> Target:
    """Every attack, `rounds` times, with one in `share` of its cases; returns what was seen.

    health_s: the longest that /health may take. idle: what must be zero in /metrics afterwards.
    """
    limits = httpx.Limits(max_connections=256)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE_S) as http:
        target, watch = Target(url, http), HealthWatch(url)
        await target.learn()
        await fill(target)
        expected = await answer(target)
        watching = asyncio.create_task(watch.run())
        sizes = []
        for number in range(rounds):
            for attack in ATTACKS:
                start = time.perf_counter()
                await run(attack, target, share, expected, idle)
                report(target, number, time.perf_counter() - start, watch)
            sizes.append(resident_mib(pid) if pid else 0.0)
        watching.cancel()
    check_health(target, watch, health_s)
    check_memory(target, sizes)
    return target


async def fill(target: Target) -> None:
    """Use the whole of a known KV cache, by prompts as long as the window: its pages, and what a
    long prompt is computed in, take their memory when they are first used."""
    metrics = (await target.http.get("/metrics")).text
    facts = dict(re.findall(r'(block_size|num_gpu_blocks)="(\d+)"', metrics))
    models = (await target.http.get("/v1/models")).json()["data"]
    if len(facts) < 2 or "max_model_len" not in models[0]:
        return
    target.attack, length = "fill", models[0]["max_model_len"] - 1
    capacity = int(facts["block_size"]) * int(facts["num_gpu_blocks"])
    for number in range(2 * math.ceil(capacity / length)):
        prompt = [5 + (number + i * i) % 250 for i in range(length)]
        body = {"prompt": prompt, "max_tokens": 1}
        await target.post("/v1/completions", body, "a prompt as long as the window", ANSWERED)


async def run(
    attack: Attack, target: Target, share: int, expected: str, idle: tuple[str, ...]
) -> None:
    target.attack = attack.__name__.replace("_", " ")
    await attack(target, share)
    found = await answer(target)
    if found != expected:
        target.findings.append(f"{target.attack}: afterwards the answer is {found!r}")
    await until_idle(target, idle)


async def answer(target: Target) -> str:
    """To a question asked alone; what came instead if there is none."""
    found = await target.post(CHAT, QUESTION, "the question after it", range(200, 201))
    if found is None or found.status_code != 200:
        return "none"
    return str(found.json()["choices"][0]["message"])


async def until_idle(target: Target, idle: tuple[str, ...]) -> None:
    """Wait until the server says that nothing runs; never is a finding."""
    deadline = time.perf_counter() + PATIENCE_S
    while busy := await gauges(target, idle):
        if time.perf_counter() > deadline:
            target.findings.append(f"{target.attack}: afterwards {', '.join(busy)} is not zero")
            return
        await asyncio.sleep(0.05)


async def gauges(target: Target, idle: tuple[str, ...]) -> list[str]:
    """The lines of /metrics that say the server is at work; none where it has no /metrics."""
    metrics = await target.http.get("/metrics")
    lines = metrics.text.splitlines() if metrics.status_code == 200 else []
    return [line for line in lines if line.startswith(idle) and float(line.rpartition(" ")[2]) != 0]


def check_health(target: Target, watch: HealthWatch, limit_s: float) -> None:
    target.findings += watch.failures
    slowest = max(watch.times)
    print(f"/health          asked {len(watch.times)} times, slowest {1000 * slowest:.0f} ms")
    if slowest > limit_s:
        target.findings.append(f"/health took {slowest:.1f} s")


def check_memory(target: Target, sizes: list[float]) -> None:
    if not all(sizes):
        return
    print(f"server RSS MiB   {' '.join(f'{size:.0f}' for size in sizes)} (after each round)")
    if sizes[-1] > sizes[0] * (1 + MEMORY_DRIFT):
        target.findings.append(f"memory grew from {sizes[0]:.0f} to {sizes[-1]:.0f} MiB")


def report(target: Target, number: int, seconds: float, watch: HealthWatch) -> None:
    counts = sorted(target.statuses.get(target.attack, {}).items())
    shown = "  ".join(f"{count} x {status or 'closed'}" for status, count in counts)
    slowest = f"/health {1000 * max(watch.times, default=0):4.0f} ms"
    print(f"{target.attack:20} round {number + 1}  {seconds:5.1f} s  {slowest}  {shown}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url", help="such as http://127.0.0.1:8000; this machine only")
    parser.add_argument("--pid", type=int, help="the server's, to watch its memory")
    parser.add_argument("--share", type=int, default=1, help="run one in SHARE of the cases")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if urlsplit(options.url).hostname not in ("127.0.0.1", "::1", "localhost"):
        parser.error(f"{options.url} is not on this machine: abuse a server you own.")
    return options


def main() -> int:
    options = parse()
    try:
        target = asyncio.run(abuse(options.url, options.share, options.pid, options.rounds))
    except httpx.ConnectError:
        print(f"nothing answers at {options.url}: start the server first.", file=sys.stderr)
        return 2
    print(f"findings         {len(target.findings)}")
    for finding in dict.fromkeys(target.findings):
        print(f"  {finding}")
    return 1 if target.findings else 0


if __name__ == "__main__":
    sys.exit(main())
