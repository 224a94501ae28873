"""Concurrent streaming clients against a running server: errors, mixed-up answers, latency.

    python tools/load_test.py http://127.0.0.1:8000 --clients 64 --seconds 60 --pid PID

Every prompt is a sum of its own ("What is 17 + 25?"), whose answer repeats it, at temperature 0.
Each is first asked alone. Under load an answer without the prompt's numbers is mixed up; one that
has them but differs from the answer alone is reported apart, because bfloat16 sums depend on how
many requests share a step. Exit code 1 if a request failed, or an answer was cut short or mixed up.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from glm_portable.bench.soak.memory import resident_mib

PERCENTILES = (50, 90, 99, 100)


@dataclass
class Answer:
    """One streamed answer; times are seconds since the request was sent."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    times: list[float] = field(default_factory=list)
    done: bool = False


@dataclass
class Tally:
    """What happened under load."""

    problems: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    tokens: int = 0
    differing: int = 0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    e2e: list[float] = field(default_factory=list)

    def add(self, answer: Answer, key: str, alone: str) -> None:
        self.answers += 1
        self.tokens += answer.tokens
        self.ttft.append(answer.times[0])
        self.itl += [b - a for a, b in itertools.pairwise(answer.times)]
        self.e2e.append(answer.times[-1])
        if not answer.done or answer.finish_reason is None:
            self.problems["ended without [DONE] or finish_reason"] += 1
        elif key not in answer.text:
            self.problems["mixed up: the answer is not to its prompt"] += 1
        else:
            self.differing += answer.text != alone


class Client:
    """Asks the server under test."""

    def __init__(self, http: httpx.AsyncClient, model: str | None, max_tokens: int) -> None:
        self._http = http
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens, "stream": True}
        self._options |= {"model": model, "stream_options": {"include_usage": True}}

    async def ask(self, key: str) -> Answer:
        """Raises httpx.HTTPError or RuntimeError when the request fails."""
        answer, start = Answer(), time.perf_counter()
        body = {"messages": [{"role": "user", "content": f"What is {key}?"}]} | self._options
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise RuntimeError(f"status {response.status_code}: {response.text[:200]}")
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    answer.done = True
                elif line:
                    chunk = json.loads(line.removeprefix("data: "))
                    read(answer, chunk, time.perf_counter() - start)
        return answer


def read(answer: Answer, chunk: dict[str, Any], now: float) -> None:
    if "error" in chunk:
        raise RuntimeError(f"in the stream: {chunk['error']['message']}")
    for choice in chunk["choices"]:
        delta = choice["delta"]
        text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
        answer.text += delta.get("content") or ""
        if text or not answer.times:
            answer.times.append(now)
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
    if chunk.get("usage"):
        answer.tokens = chunk["usage"]["completion_tokens"]


def sums(count: int) -> list[str]:
    chooser = random.Random(1)
    pairs = {(chooser.randrange(10, 100), chooser.randrange(10, 100)) for _ in range(3 * count)}
    return [f"{a} + {b}" for a, b in sorted(pairs)[:: max(1, len(pairs) // count)]][:count]


async def answers_alone(client: Client, count: int) -> dict[str, str]:
    """The prompts whose answer repeats their numbers, with that answer."""
    found = {key: (await client.ask(key)).text for key in sums(count)}
    return {key: text for key, text in found.items() if key in text}


async def keep_asking(client: Client, alone: dict[str, str], tally: Tally, end: float) -> None:
    keys = list(alone)
    random.shuffle(keys)
    for key in itertools.cycle(keys):
        if time.perf_counter() >= end:
            return
        try:
            tally.add(await client.ask(key), key, alone[key])
        except (httpx.HTTPError, RuntimeError, ValueError, IndexError) as error:
            tally.problems[f"{type(error).__name__}: {error}"] += 1


async def record_memory(pid: int | None, sizes: list[float]) -> None:
    while pid is not None:
        sizes.append(resident_mib(pid))
        await asyncio.sleep(1)


def percentiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    found = (ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in PERCENTILES)
    return "  ".join(
        f"p{p} {1000 * value:8.1f}" for p, value in zip(PERCENTILES, found, strict=True)
    )


def report(tally: Tally, seconds: float, sizes: Sequence[float]) -> None:
    rate = tally.answers / seconds
    print(f"answers          {tally.answers} in {seconds:.1f} s, {rate:.1f} a second")
    print(f"tokens           {tally.tokens}, {tally.tokens / seconds:.1f} a second")
    print(f"errors           {sum(tally.problems.values())}")
    for problem, count in tally.problems.most_common():
        print(f"  {count} x {problem}")
    print(f"unlike alone     {tally.differing} (right prompt, other words)")
    if tally.answers:
        print(f"TTFT ms          {percentiles(tally.ttft)}")
        print(f"ITL ms           {percentiles(tally.itl)}")
        print(f"whole answer ms  {percentiles(tally.e2e)}")
    if sizes:
        series = " ".join(f"{size:.0f}" for size in (*sizes[::10], sizes[-1]))
        print(f"server RSS MiB   {series} (every 10 s)")


async def main(options: argparse.Namespace) -> int:
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=options.clients)
    async with httpx.AsyncClient(
        base_url=options.url, headers=headers, limits=limits, timeout=300
    ) as http:
        client = Client(http, options.model, options.max_tokens)
        alone = await answers_alone(client, 2 * options.clients)
        print(f"prompts          {len(alone)} of {2 * options.clients} can be told apart")
        if not alone:
            return 1
        tally, sizes, start = Tally(), list[float](), time.perf_counter()
        memory = asyncio.create_task(record_memory(options.pid, sizes))
        end = start + options.seconds
        await asyncio.gather(
            *(keep_asking(client, alone, tally, end) for _ in range(options.clients))
        )
        memory.cancel()
    report(tally, time.perf_counter() - start, sizes)
    return 1 if tally.problems or not tally.answers else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url", help="such as http://127.0.0.1:8000; this machine only")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--model", help="default: the server's own")
    parser.add_argument("--api-key")
    parser.add_argument("--pid", type=int, help="the server's, to watch its memory")
    options = parser.parse_args()
    if urlsplit(options.url).hostname not in ("127.0.0.1", "::1", "localhost"):
        parser.error(f"{options.url} is not on this machine: load tests are for a server you own.")
    return options


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parse())))
