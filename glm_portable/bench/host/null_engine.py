"""The engine's process around a model that computes nothing."""

import gc
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from socket import socket

import torch

from glm_portable.bench.host.load import Load
from glm_portable.bench.host.null import CALLS_ALONE, NullModel, null_tokenizer
from glm_portable.bench.host.watch import Watch, cpu_of
from glm_portable.engine.engine import Engine
from glm_portable.serve.remote.grammars import Grammars
from glm_portable.serve.remote.host import EngineHost
from glm_portable.serve.remote.process import Leash
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.structured.compiler import vocabulary_of


@dataclass(frozen=True)
class EngineFigures:
    """period: seconds from a step to the next. thread, process: processor seconds of a step."""

    period: float
    thread: float
    process: float
    steps: int


def run_null_engine(
    sock: socket, leash: Leash, load: Load, step_s: float, told: Connection, measured: bool = True
) -> None:
    """Tells its first stats; when all sequences are in; and figures, when the server has gone.

    The first step waits for an answer to the second of these. Not measured, it tells the first
    alone and waits for nothing.
    """
    torch.set_num_threads(1)  # beside an accelerator nothing here is worth two threads
    watch, everyone = Watch(time.perf_counter), threading.Event()
    model = NullModel(load.sequences, CALLS_ALONE, watch, step_s, everyone)
    tokenizer, observed = null_tokenizer(), RequestMetrics(load.limits.max_model_len)
    with Engine(model, tokenizer, load.limits, observer=observed) as engine:
        thread = next(t for t in threading.enumerate() if t.name == "engine")
        watch.clocks = {"thread": cpu_of(thread), "process": time.process_time}

        def open_when_all_are_in() -> None:
            while not everyone.wait(0.01):
                stats = engine.stats()
                if stats.running + stats.waiting == load.sequences:
                    told.send(None)
                    told.recv()
                    watch.note_cpu()
                    everyone.set()

        gc.collect()
        gc.freeze()
        told.send(engine.stats())
        leash.release()
        host = EngineHost(engine, sock, Grammars(lambda: vocabulary_of(tokenizer)), observed)
        if not measured:
            everyone.set()
            return host.run()
        threading.Thread(target=open_when_all_are_in, daemon=True).start()
        host.run()
        watch.note_cpu()
        everyone.set()
        thread_s, process_s = watch.cpu_a_step("thread"), watch.cpu_a_step("process")
        told.send(EngineFigures(watch.period(), thread_s, process_s, len(watch.steps)))
