"""The measurements: the engine alone, building a step, and the engine under the HTTP server."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from array import array
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from glm_portable.bench.host.null import CALLS_ALONE, VOCABULARY, NullModel
from glm_portable.bench.host.watch import Watch
from glm_portable.engine.engine import Engine
from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.ops import Step
from glm_portable.serve.app import create_app
from glm_portable.serve.chat import ChatTemplate
from glm_portable.serve.server import Server, bind
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from glm_portable.tokenizer import Tokenizer

PAGE = 16
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 1.0, "top_p": 0.95}


@dataclass(frozen=True)
class Load:
    """So many sequences after a prompt of so many tokens, for so many steps."""

    sequences: int
    input_len: int
    steps: int
    sampled: bool = False

    @property
    def params(self) -> dict[str, Any]:
        return dict(SAMPLED if self.sampled else GREEDY)

    @property
    def limits(self) -> EngineLimits:
        length = self.input_len + self.steps + 1
        return EngineLimits(
            max_model_len=length,
            max_num_seqs=self.sequences,
            max_num_batched_tokens=self.sequences * self.input_len,
            num_pages=self.sequences * (-(-length // PAGE) + 2),
            page_size=PAGE,
        )

    def prompt(self, number: int) -> list[int]:
        return [256 + (number * 31 + i) % 1000 for i in range(self.input_len)]


def engine_alone(load: Load, tokenizer: Tokenizer, *, columns: int) -> dict[str, float]:
    """Median seconds of each part of a step, without a server."""
    watch = Watch()
    model = NullModel(load.sequences, columns, watch)
    params = SamplingParams(**load.params, max_tokens=load.steps, ignore_eos=True, seed=1)
    ended = threading.Semaphore(0)

    def on_delta(delta: Delta) -> None:
        if delta.finish_reason is not None:
            ended.release()

    engine = Engine(model, watch.tokenizer(tokenizer), load.limits)
    for number in range(load.sequences):
        engine.submit(load.prompt(number), params, watch.callback(on_delta))
    with engine:
        for _ in range(load.sequences):
            ended.acquire()
    return watch.medians()


def build_step(load: Load) -> float:
    """Median seconds of laying out one decode step: a part of `prepare`."""
    pages = -(-(load.input_len + load.steps) // PAGE)
    rows = [
        (load.input_len + 1, 1, array("i", range(b * pages, (b + 1) * pages)))
        for b in range(load.sequences)
    ]
    device, times = torch.device("cpu"), []
    for _ in range(30):
        begin = time.perf_counter()
        Step.build(rows, PAGE, device)
        times.append(time.perf_counter() - begin)
    return median(times)


@dataclass(frozen=True)
class Served:
    """Seconds a step: by how much it outlasted the model, and what the two threads computed."""

    added: float
    engine_cpu: float
    loop_cpu: float


def served(load: Load, tokenizer: Tokenizer, step_s: float, *, socket: bool) -> Served:
    """Streams of all sequences at once, through the application alone or through sockets."""
    watch, everyone = Watch(time.perf_counter), threading.Event()
    model = NullModel(load.sequences, CALLS_ALONE, watch, step_s, everyone)
    settings = ServerSettings(port=0, served_model_names=("null",))
    with Engine(model, tokenizer, load.limits) as engine:
        chat, window = ChatTemplate(None, tokenizer), load.limits.max_model_len
        service = Service(engine, chat, tokenizer, "glm45", window, settings)
        watch.threads["engine"] = next(t for t in threading.enumerate() if t.name == "engine")

        def open_when_all_are_in() -> None:
            while not everyone.wait(0.01):
                stats = engine.stats()
                if stats.running + stats.waiting == load.sequences:
                    watch.note_cpu()
                    everyone.set()

        gate = threading.Thread(target=open_when_all_are_in)
        gate.start()
        try:
            (_over_sockets if socket else _in_process)(service, load, watch)
        finally:
            everyone.set()
            gate.join()
    return Served(watch.period() - step_s, watch.cpu_a_step("engine"), watch.cpu_a_step("server"))


def _body(load: Load, number: int) -> dict[str, Any]:
    return {
        "prompt": load.prompt(number),
        "max_tokens": load.steps,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **load.params,
    }


def _in_process(service: Service, load: Load, watch: Watch) -> None:
    """The application called as a server calls it, with nobody at the other end."""
    app = create_app(service)

    async def one(number: int) -> None:
        body = json.dumps(_body(load, number)).encode()
        received = asyncio.Queue[dict[str, Any]]()
        received.put_nowait({"type": "http.request", "body": body})
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        statuses = []

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 200))

        await app(scope, received.get, send)
        assert set(statuses) == {200}, statuses

    async def everyone() -> None:
        await asyncio.gather(*map(one, range(load.sequences)))

    watch.threads["server"] = threading.current_thread()
    asyncio.run(everyone())
    watch.note_cpu()


def _over_sockets(service: Service, load: Load, watch: Watch) -> None:
    """The server itself in a thread, and its clients in a process of their own."""
    ready = threading.Event()
    urls: list[str] = []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    server = Server(service, on_ready)
    sock = bind(service.settings)
    sock.listen(2048)
    thread = threading.Thread(target=server.run, args=[[sock]], name="server")
    thread.start()
    ready.wait()
    watch.threads["server"] = thread
    try:
        bodies = [_body(load, number) for number in range(load.sequences)]
        command = [sys.executable, "-m", "glm_portable.bench.host.client", urls[0]]
        subprocess.run(command, input=json.dumps(bodies).encode(), check=True)
        watch.note_cpu()
    finally:
        server.drain()
        thread.join()


COLUMNS = {"calls": CALLS_ALONE, "arithmetic": VOCABULARY}
