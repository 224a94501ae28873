"""The measurements: the engine alone, building a step, and the engine under the HTTP server."""

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from statistics import median
from typing import Any

import torch

from glm_portable.bench.host.load import PAGE, Load
from glm_portable.bench.host.null import CALLS_ALONE, VOCABULARY, NullModel
from glm_portable.bench.host.null_engine import EngineFigures, run_null_engine
from glm_portable.bench.host.watch import Watch
from glm_portable.engine.engine import Engine
from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.ops import Step
from glm_portable.serve.app import create_app
from glm_portable.serve.chat import ChatTemplate
from glm_portable.serve.remote.client import EngineClient
from glm_portable.serve.remote.process import EngineProcess, start
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.server import Server, bind
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from glm_portable.serve.streaming import PIECES
from glm_portable.tokenizer import Tokenizer


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
    """Seconds a step: by how much it outlasted the model, and what was computed by whom."""

    added: float
    engine_thread: float
    engine_process: float
    server_process: float


def served(load: Load, tokenizer: Tokenizer, step_s: float, *, socket: bool) -> Served:
    """Streams of all sequences at once, through the application alone or through sockets.

    The engine is in a process of its own, as under `glm-portable serve`.
    """
    told, theirs = Pipe()
    noted: list[float] = []

    def note() -> None:
        noted.append(time.process_time())

    def begin() -> None:
        told.recv()  # all are in
        note()
        told.send(None)

    with start(run_null_engine, load, step_s, theirs) as engine:
        theirs.close()
        service = service_of(engine, told.recv(), load, tokenizer)
        gate = threading.Thread(target=begin, daemon=True)
        gate.start()
        gc.collect()
        gc.freeze()  # as `glm-portable serve` does
        (_over_sockets if socket else _in_process)(service, load, note)
        figures: EngineFigures = told.recv()
    return Served(
        added=figures.period - step_s,
        engine_thread=figures.thread,
        engine_process=figures.process,
        server_process=(noted[1] - noted[0]) / figures.steps,
    )


def settings_at(port: int) -> ServerSettings:
    return ServerSettings(port=port, served_model_names=("null",))


def service_of(
    engine: EngineProcess, stats: EngineStats, load: Load, tokenizer: Tokenizer, port: int = 0
) -> Service:
    """What the server serves, over a null engine that has told its first stats."""
    observed = RequestMetrics(load.limits.max_model_len)
    client = EngineClient(engine.sock, load.limits, tokenizer.vocab_size, stats, observed)
    chat, window = ChatTemplate(None, tokenizer), load.limits.max_model_len
    settings = settings_at(port)
    return Service(client, chat, tokenizer, "glm45", window, settings, remote=client)


def _body(load: Load, number: int) -> dict[str, Any]:
    return {
        "prompt": load.prompt(number),
        "max_tokens": load.steps,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **load.params,
    }


class Nobody:
    """Takes the pieces of a body, and does nothing with them."""

    writable = True

    async def drain(self) -> None:
        pass

    def write_piece(self, data: bytes) -> None:
        pass


def _in_process(service: Service, load: Load, note: Callable[[], None]) -> None:
    """The application called as a server calls it, with nobody at the other end.

    note: called when all is over.
    """
    app, remote = create_app(service), service.remote
    assert remote is not None

    async def one(number: int) -> None:
        body = json.dumps(_body(load, number)).encode()
        received = asyncio.Queue[dict[str, Any]]()
        received.put_nowait({"type": "http.request", "body": body})
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "extensions": {PIECES: Nobody()},
        }  # fmt: skip
        statuses = []

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 200))

        await app(scope, received.get, send)
        assert set(statuses) == {200}, statuses

    async def everyone() -> None:
        await remote.connect()
        await asyncio.gather(*map(one, range(load.sequences)))
        note()
        await remote.close()

    asyncio.run(everyone())


def _over_sockets(service: Service, load: Load, note: Callable[[], None]) -> None:
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
    try:
        bodies = [_body(load, number) for number in range(load.sequences)]
        command = [sys.executable, "-m", "glm_portable.bench.host.client", urls[0]]
        subprocess.run(command, input=json.dumps(bodies).encode(), check=True)
        note()
    finally:
        server.drain()
        thread.join()


COLUMNS = {"calls": CALLS_ALONE, "arithmetic": VOCABULARY}
