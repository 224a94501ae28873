"""The whole life of the engine's process: load, say so, compute what the server asks for, end."""

import gc
import logging
from contextlib import ExitStack
from socket import socket

from glm_portable.engine.engine import Engine, EngineLimits
from glm_portable.engine.limits import mib, page_bytes
from glm_portable.engine.types import TokenLogprob
from glm_portable.engine_task import EngineTask, Ready
from glm_portable.glm import GLM
from glm_portable.processes import start
from glm_portable.serve.logs import configure
from glm_portable.serve.remote.grammars import Grammars
from glm_portable.serve.remote.host import EngineHost
from glm_portable.serve.remote.process import Leash
from glm_portable.serve.remote.wire import pack
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.self_test import SelfTest
from glm_portable.serve.structured.compiler import vocabulary_of
from glm_portable.terminal import load_with_progress

log = logging.getLogger(__name__)


def run_engine(sock: socket, leash: Leash, task: EngineTask) -> None:
    """Until the server closes its end. Raises UsageError for what cannot be started."""
    configure(task.log_format, task.log_level)
    say = None if task.log_format == "text" else log.info
    with ExitStack() as stack:
        ranks = stack.enter_context(start(task.model, task.ranks, task.expert_groups, task.options))
        glm = load_with_progress(task.model, parallel=ranks.parallel, say=say, **task.options)
        leader = ranks.leader(glm.model)
        limits = glm.limits(model=leader, **task.limit_options)
        observed = RequestMetrics(limits.max_model_len)
        engine = stack.enter_context(
            Engine(leader, glm.tokenizer, limits, task.seed, glm.speculative, observed)
        )
        grammars = Grammars(lambda: vocabulary_of(glm.tokenizer))
        grammars.prepare()
        scores = _scores(engine, glm, limits) if task.self_test else None
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection walks it while requests wait
        leash.release()
        sock.sendall(pack(_ready(glm, engine, scores)))
        EngineHost(engine, sock, grammars, observed).run()  # from now on it may speak
        leash.limit()


def _scores(engine: Engine, glm: GLM, limits: EngineLimits) -> tuple[TokenLogprob, ...]:
    """What the server compares with when it is asked for the model's health."""
    return SelfTest.of(glm.tokenizer, limits.max_model_len).record(engine)


def _ready(glm: GLM, engine: Engine, scores: tuple[TokenLogprob, ...] | None) -> Ready:
    return Ready(
        name=glm.name,
        folder=str(glm.folder),
        limits=engine.limits,
        stats=engine.stats(),
        scores=scores,
        cache=_about_cache(engine.limits, glm),
        cache_config=_cache_config(engine.limits, glm),
        machine=_machine(glm),
    )


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
