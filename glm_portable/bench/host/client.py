"""`python -m glm_portable.bench.host.client URL`: asks every body of a JSON list on stdin at once.

A process of its own, so that the clients do not share the server's interpreter.
"""

import asyncio
import json
import sys
from typing import Any

from glm_portable.bench.serve.connection import Address, Pool
from glm_portable.bench.serve.stream import Record, StreamReader


async def ask(pool: Pool, body: dict[str, Any]) -> Record:
    record = Record(len(body["prompt"]), pool.clock())
    reader = StreamReader(record, chat=False)
    status, text = await pool.post("/v1/completions", {}, json.dumps(body).encode(), reader.feed)
    reader.end()
    if not record.success:
        raise RuntimeError(f"status {status}: {text or record.error}")
    return record


async def everyone(url: str, bodies: list[dict[str, Any]]) -> None:
    pool = Pool(Address.parse(url))
    await asyncio.gather(*(ask(pool, body) for body in bodies))
    pool.close()


if __name__ == "__main__":
    asyncio.run(everyone(sys.argv[1], json.load(sys.stdin)))
