"""The body of the command `serve`: an HTTP server here, and the engine in a process of its own.

Nothing here imports torch.
"""

import gc
import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

from rich.console import Console

from glm_portable.config import ModelConfig
from glm_portable.engine_task import EngineTask, Ready, Refused
from glm_portable.errors import UsageError
from glm_portable.options import import_failure
from glm_portable.serve.chat import ChatTemplate, tool_call_format
from glm_portable.serve.flags import take_settings, template_defaults
from glm_portable.serve.loading import answering
from glm_portable.serve.logs import LogFormat, configure
from glm_portable.serve.remote.client import EngineClient
from glm_portable.serve.remote.process import EngineEnded, EngineProcess, Leash, start
from glm_portable.serve.remote.wire import pack
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.sampling import defaults_of
from glm_portable.serve.server import bind, run
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from glm_portable.serve.tracing import Tracing
from glm_portable.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def run_server(
    model: str | None,
    limit_options: dict[str, Any],
    *,
    log_format: LogFormat,
    log_level: str,
    disable_log_requests: bool,
    otlp_traces_endpoint: str | None,
    max_model_len: int | None,
    seed: int,
    reasoning_parser: str | None,
    enable_auto_tool_choice: bool,
    tensor_parallel_size: int,
    expert_parallel_size: int | None,
    enable_expert_parallel: bool,
    **options: Any,
) -> int:
    """Load, serve until a signal, drain; returns the exit code. Raises UsageError before that.

    limit_options: see `_limit_options`. options: of the HTTP server, and of loading.
    reasoning_parser and enable_auto_tool_choice change nothing: both are always on here.
    """
    configure(log_format, log_level, log_requests=not disable_log_requests)
    named = bool(options["served_model_name"])
    settings = take_settings(options)
    defaults = template_defaults(options.pop("default_chat_template_kwargs"))
    limit_options = _limit_options(**limit_options) | {"max_model_len": max_model_len}
    asked = limit_options["enable_deterministic_inference"]
    options["enable_deterministic_inference"] = asked  # decides what computes, too
    task = EngineTask(
        model=model,
        options=options,
        limit_options=limit_options,
        seed=seed,
        ranks=tensor_parallel_size,
        expert_groups=expert_parallel_size
        or (tensor_parallel_size if enable_expert_parallel else 1),
        self_test=options["virtual"] is None,  # a simulated chip would take minutes
        log_format=log_format,
        log_level=log_level,
    )
    tracing = Tracing.to(otlp_traces_endpoint)
    sock = bind(settings)  # a taken port shows before the loading
    with ExitStack() as stack:
        loading = stack.enter_context(ExitStack())
        loading.enter_context(answering(sock, settings))
        engine = stack.enter_context(start(_engine, task))
        try:
            ready = _wait_for(engine)
        except EngineEnded as error:
            return _fail(error.sentence)
        if not named:
            settings = replace(settings, served_model_names=(ready.name,))
        service = _service(ready, engine, settings, options, defaults, tracing)
        loading.close()
        code = _serve(service, sock, ready, log_format)
        remote = service.remote
        assert remote is not None
        return _fail(engine.ending()) if remote.ended else code


def _engine(sock: socket, leash: Leash, task: EngineTask) -> None:
    """In the engine's process."""
    try:
        from glm_portable.engine_main import run_engine

        run_engine(sock, leash, task)
    except UsageError as error:
        sock.sendall(pack(Refused(str(error))))
    except RuntimeError as error:
        sentence = import_failure(error)
        if sentence is None:
            raise
        sock.sendall(pack(Refused(sentence)))


def _wait_for(engine: EngineProcess) -> Ready:
    """Until it takes requests. Raises UsageError with its reason if it does not, or EngineEnded."""
    message = engine.receive(Ready | Refused)
    if isinstance(message, Refused):
        raise UsageError(message.sentence)
    assert isinstance(message, Ready)
    return message


def _fail(sentence: str | None) -> int:
    """The exit code when the engine has ended by itself."""
    if sentence is not None:
        print(f"Error: {sentence} The server ends.", file=sys.stderr, flush=True)
    return 1


def _service(
    ready: Ready,
    engine: EngineProcess,
    settings: ServerSettings,
    options: dict[str, Any],
    defaults: dict[str, bool],
    tracing: Tracing | None,
) -> Service:
    """options: of loading. defaults: of the chat template's variables."""
    folder, window = Path(ready.folder), ready.limits.max_model_len
    tokenizer = Tokenizer.load(folder, ModelConfig.load(folder))
    chat = ChatTemplate.load(folder, tokenizer, options["chat_template"], defaults)
    observed = RequestMetrics(window)
    client = EngineClient(engine.sock, ready.limits, tokenizer.vocab_size, ready.stats, observed)
    service = Service(
        client,
        chat,
        tokenizer,
        tool_call_format(options["tool_call_parser"], chat),
        window,
        replace(settings, sampling=defaults_of(folder)),
        observed=observed,
        cache_config=ready.cache_config,
        tracing=tracing,
        remote=client,
        engine_pid=engine.pid,
    )
    service.grammars.prepare()
    if ready.scores is not None:
        service.self_test.expect(ready.scores)
    return service


def _serve(service: Service, sock: socket, ready: Ready, log_format: LogFormat) -> int:
    """Answer requests until the end."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say = console.print if log_format == "text" else log.info
    say(ready.cache)
    names = ", ".join(service.settings.served_model_names)
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection walks it while requests wait
    return run(service, sock, lambda url: say(_ready(url, names, ready.machine)))


def _ready(url: str, names: str, machine: str) -> str:
    return (
        f"Serving {names} on {machine} at {url}/v1 and, for a chat, {url}/ "
        "(Ctrl-C finishes what runs and ends)"
    )


def _limit_options(
    *,
    max_num_batched_tokens: int | None,
    enable_chunked_prefill: bool,
    chunked_prefill_size: int | None,
    kv_cache_memory: int | None,
    preemption_mode: str,
    **others: Any,
) -> dict[str, Any]:
    """What `GLM.limits` takes, of the options that have vLLM's and SGLang's names."""
    if preemption_mode != "recompute":
        raise UsageError(
            f"preemption_mode {preemption_mode} is not supported: a request whose pages are needed "
            "is computed again later, as far as it is not found in the cache; use recompute."
        )
    if chunked_prefill_size is not None:
        if chunked_prefill_size == -1:
            enable_chunked_prefill = False
        elif max_num_batched_tokens not in (None, chunked_prefill_size):
            raise UsageError(
                f"--max-num-batched-tokens is {max_num_batched_tokens} and --chunked-prefill-size "
                f"{chunked_prefill_size}, which mean the same; give one of them."
            )
        elif not enable_chunked_prefill:
            raise UsageError(
                f"--chunked-prefill-size {chunked_prefill_size} contradicts "
                "--no-enable-chunked-prefill; give one of them."
            )
        else:
            max_num_batched_tokens = chunked_prefill_size
    return others | {
        "max_num_batched_tokens": max_num_batched_tokens,
        "enable_chunked_prefill": enable_chunked_prefill,
        "memory_bytes": kv_cache_memory,
    }
