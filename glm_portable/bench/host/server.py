"""A server whose model computes nothing, to measure clients with."""

import gc
from multiprocessing import Pipe

import click

from glm_portable.bench.host.load import Load
from glm_portable.bench.host.measure import service_of, settings_at
from glm_portable.bench.host.null import null_tokenizer
from glm_portable.bench.host.null_engine import run_null_engine
from glm_portable.serve.remote.process import start
from glm_portable.serve.server import bind, run


def run_null_server(load: Load, step_s: float, port: int) -> int:
    """Serve until SIGINT or SIGTERM; the exit code. Raises UsageError if the port is taken."""
    sock = bind(settings_at(port))
    told, theirs = Pipe()
    with start(run_null_engine, load, step_s, theirs, False) as engine:
        theirs.close()
        service = service_of(engine, told.recv(), load, null_tokenizer(), port)
        gc.collect()
        gc.freeze()  # as `glm-portable serve` does
        return run(service, sock, lambda url: click.echo(f"Serving a null model at {url}/v1"))
