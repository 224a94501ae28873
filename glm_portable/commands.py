"""The bodies of the commands that put larger parts together: the server, the evaluation."""

import gc
import json
import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

from rich.console import Console

from glm_portable import hub
from glm_portable.convert import Conversion
from glm_portable.engine.engine import Engine, EngineLimits
from glm_portable.engine.limits import mib, page_bytes
from glm_portable.errors import UsageError
from glm_portable.evaluate import Answer, Ask, Call, Endpoint
from glm_portable.glm import GLM
from glm_portable.processes import start
from glm_portable.serve.flags import take_settings
from glm_portable.serve.loading import answering
from glm_portable.serve.logs import LogFormat, configure
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.server import bind, run
from glm_portable.serve.service import Service
from glm_portable.serve.tracing import Tracing
from glm_portable.terminal import load_with_progress, progress_bar

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
    limit_options = _limit_options(**limit_options)
    asked = limit_options["enable_deterministic_inference"]
    options["enable_deterministic_inference"] = asked  # decides what computes, too
    tracing = Tracing.to(otlp_traces_endpoint)
    sock = bind(settings)  # a taken port shows before the loading
    size = tensor_parallel_size
    groups = expert_parallel_size or (size if enable_expert_parallel else 1)
    with ExitStack() as stack:
        loading = stack.enter_context(ExitStack())
        loading.enter_context(answering(sock, settings))
        ranks = stack.enter_context(start(model, size, groups, options))
        say = None if log_format == "text" else log.info
        glm = load_with_progress(model, parallel=ranks.parallel, say=say, **options)
        leader = ranks.leader(glm.model)
        limits = glm.limits(max_model_len=max_model_len, model=leader, **limit_options)
        if not named:
            settings = replace(settings, served_model_names=(glm.name,))
        observed = RequestMetrics(limits.max_model_len)
        engine = stack.enter_context(
            Engine(
                leader,
                glm.tokenizer,
                limits,
                seed,
                glm.speculative,
                observed,
            )
        )
        service = Service(
            engine,
            glm.chat,
            glm.tokenizer,
            glm.call_format,
            limits.max_model_len,
            replace(settings, sampling=glm.sampling),
            observed=observed,
            cache_config=_cache_config(limits, glm),
            tracing=tracing,
        )
        service.grammars.prepare()
        if options["virtual"] is None:  # a simulated chip would take minutes
            service.self_test.record(engine)
        loading.close()
        return _serve(service, sock, _about_cache(limits, glm), _machine(glm), log_format)


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


def _serve(service: Service, sock: socket, cache: str, machine: str, log_format: LogFormat) -> int:
    """Answer requests until the end."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say = console.print if log_format == "text" else log.info
    say(cache)
    names = ", ".join(service.settings.served_model_names)
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection walks it while requests wait
    return run(service, sock, lambda url: say(_ready(url, names, machine)))


def _machine(glm: GLM) -> str:
    ranks = glm.model.parallel.size
    return glm.model.ops.name if ranks == 1 else f"{ranks} ranks of {glm.model.ops.name}"


def _about_cache(limits: EngineLimits, glm: GLM) -> str:
    tokens, dtype = limits.num_pages * limits.page_size, glm.model.kv_dtype
    local = glm.model.parallel.local(glm.model.config)
    size = limits.num_pages * page_bytes(local, limits.page_size, dtype.itemsize)
    return (
        f"KV cache: {tokens:,} tokens, {tokens / limits.max_model_len:.1f} windows of "
        f"{limits.max_model_len:,}, in {mib(size)} MiB of {str(dtype).removeprefix('torch.')}; "
        f"up to {limits.max_num_seqs} sequences at once"
    )


def _cache_config(limits: EngineLimits, glm: GLM) -> dict[str, str]:
    """Labels of vllm:cache_config_info."""
    return {
        "block_size": str(limits.page_size),
        "num_gpu_blocks": str(limits.num_pages),
        "enable_prefix_caching": str(limits.enable_prefix_caching),
        "cache_dtype": str(glm.model.kv_dtype).removeprefix("torch."),
    }


def _ready(url: str, names: str, machine: str) -> str:
    return (
        f"Serving {names} on {machine} at {url}/v1 and, for a chat, {url}/ "
        "(Ctrl-C finishes what runs and ends)"
    )


def run_convert(
    model: str,
    output: Path,
    *,
    quantization: str,
    shard_size: float,
    router_bias_from: Path | None,
    revision: str | None,
) -> int:
    """Convert with a progress bar; returns the exit code. shard_size: in GB. Raises UsageError."""
    conversion = Conversion(
        hub.resolve(model, revision),
        output,
        quantization,
        shard_bytes=int(shard_size * 1e9),
        router_bias_from=router_bias_from,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    begin = time.monotonic()
    try:
        with progress_bar("converting", console) as advance:
            kept = conversion.run(lambda count: advance(count, conversion.total_bytes))
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        return 130
    seconds, count = time.monotonic() - begin, len(conversion.files)
    known = f", {kept} of them kept from an earlier run" if kept else ""
    console.print(
        f"Wrote {output} ({quantization}): {conversion.total_bytes / 1e9:,.2f} GB in {count} "
        f"file{'s' if count > 1 else ''}{known}, {seconds:.1f} s",
        markup=False,
    )
    return 0


def ask_endpoint(url: str, model: str | None, api_key: str | None) -> Endpoint:
    """Questions for a server."""
    return Endpoint(url, model=model, api_key=api_key)


def ask_glm(glm: GLM) -> Ask:
    """Questions for a model in this process."""

    def ask(messages: Any, tools: Any, thinking: bool, max_tokens: int) -> Answer:
        answer = glm.generate(
            messages,
            tools=tools,
            chat_template_kwargs={"enable_thinking": thinking},
            temperature=0.0,
            max_tokens=max_tokens,
        )
        calls = tuple(Call(c.name, json.loads(c.arguments)) for c in answer.tool_calls)
        whole = calls and answer.finish_reason == "stop"
        finish = "tool_calls" if whole else answer.finish_reason
        return Answer(answer.content or "", answer.reasoning or "", calls, finish)

    return ask
