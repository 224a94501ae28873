"""Send the prompts at their times, a limited number at once, and record each answer."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from glm_portable.bench.serve.connection import Broken, Pool
from glm_portable.bench.serve.lag import Lag
from glm_portable.bench.serve.stream import Record, StreamReader
from glm_portable.bench.serve.workload import Prompt


@dataclass(frozen=True)
class Target:
    """Where requests go and what each of them says besides its prompt."""

    pool: Pool
    endpoint: str
    chat: bool
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    ignore_eos: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """As vLLM's tool sends it; extra_body wins."""
        if self.chat:
            asked: dict[str, Any] = {
                "messages": [{"role": "user", "content": prompt.content}],
                "max_completion_tokens": prompt.max_tokens,
            }
        else:
            asked = {"prompt": prompt.content, "max_tokens": prompt.max_tokens}
        common = {"stream": True, "stream_options": {"include_usage": True}}
        eos = {"ignore_eos": True} if self.ignore_eos else {}
        return {"model": self.model} | asked | common | eos | dict(self.extra_body)

    async def ask(self, prompt: Prompt) -> Record:
        """Send one prompt; whatever goes wrong is in the record."""
        content = json.dumps(self.body(prompt)).encode()
        record = Record(prompt.tokens, self.pool.clock())
        reader = StreamReader(record, self.chat)
        try:
            status, text = await self.pool.post(self.endpoint, self.headers, content, reader.feed)
        except Broken as error:
            record.fail(str(error))
            return record
        if status != 200:
            record.fail(f"status {status}: {' '.join(text.split())[:300]}")
        else:
            reader.end()
        return record


@dataclass(frozen=True)
class Run:
    """The records in the order of the prompts, and how long it took from first to last."""

    records: list[Record]
    duration: float
    lag: Lag


async def measure(
    target: Target,
    prompts: Sequence[Prompt],
    times: Sequence[float],
    max_concurrency: int | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """times: seconds from the start, one a prompt."""
    limit = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()

    async def one(prompt: Prompt) -> Record:
        async with limit:
            record = await target.ask(prompt)
        on_done()
        return record

    async with Lag() as lag:
        begin = time.perf_counter()
        tasks = []
        for prompt, at in zip(prompts, times, strict=True):
            wait = begin + at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(one(prompt)))
        records = await asyncio.gather(*tasks)
        duration = time.perf_counter() - begin
    return Run(records, duration, lag)


async def warm_up(target: Target, prompt: Prompt, count: int, max_concurrency: int | None) -> None:
    """Send the same prompt a few times; nothing is recorded."""
    await measure(target, [prompt] * count, [0.0] * count, max_concurrency)
