"""The engine without its thread: schedule, compute, sample, and hand out what came of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.engine.kv_cache import PagePool
from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.request import Request
from glm_portable.engine.sampling import Sampled, sample
from glm_portable.engine.scheduler import Chunk, Scheduler
from glm_portable.engine.types import Delta
from glm_portable.ops import KVCache, Ops, Step

log = logging.getLogger(__name__)

UNHEALTHY_AFTER = 3
"""Failed steps in a row from which on the engine calls itself unhealthy."""


@dataclass(frozen=True)
class EngineStats:
    """A look at the engine. Token counts and the ones after them only ever grow.

    running, waiting: requests. prompt_tokens counts a prompt once, when its first token is
    sampled, however often it was computed. prefix_cache_queries: tokens of the prompts that looked
    for others' pages; prefix_cache_hits: tokens they found. healthy: false after several failed
    steps in a row.
    """

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    steps: int
    failed_steps: int
    healthy: bool
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0


class LanguageModel(Protocol):
    """What the engine needs of `glm_portable.model.Model`."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def ops(self) -> Ops: ...

    def allocate(self, pages: int, page_size: int) -> list[KVCache]: ...

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor: ...

    def logits(self, hidden_TD: Tensor) -> Tensor: ...


class EngineCore:
    """Owns the model and its caches; one thread uses it.

    vocab_size: how many tokens can be sampled. A step that fails ends the requests in it and no
    others.
    """

    def __init__(self, model: LanguageModel, limits: EngineLimits, vocab_size: int) -> None:
        self.model, self.limits, self.vocab_size = model, limits, vocab_size
        self.pool = PagePool(limits.num_pages, limits.page_size)
        self.scheduler = Scheduler(
            self.pool,
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            prefix_caching=limits.enable_prefix_caching,
            chunked_prefill=limits.enable_chunked_prefill,
            by_priority=limits.scheduling_policy == "priority",
        )
        self.requests: dict[str, Request] = {}
        self._prompt_tokens = self._generation_tokens = 0
        self._steps = self._failed_steps = self._failures_in_a_row = 0
        self._caches = model.allocate(limits.num_pages, limits.page_size)

    def stats(self) -> EngineStats:
        """As of now; from another thread than the engine's, its numbers may be a step apart."""
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            pages_used=self.pool.num_used,
            pages_total=self.pool.num_pages,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            preemptions=self.scheduler.preemptions,
            steps=self._steps,
            failed_steps=self._failed_steps,
            healthy=self._failures_in_a_row < UNHEALTHY_AFTER,
            prefix_cache_queries=self.scheduler.prefix_cache_queries,
            prefix_cache_hits=self.scheduler.prefix_cache_hits,
        )

    def add(self, request: Request) -> None:
        """Queue a request that `Scheduler.check` has accepted."""
        self.requests[request.request_id] = request
        self.scheduler.submit(request.sequence)

    def abort(self, request_id: str) -> None:
        """End a request with finish_reason "abort"; no effect on one that has ended."""
        request = self.requests.get(request_id)
        if request is not None:
            self._finish(request, request.finish("abort"))

    def fail(self, requests: Sequence[Request], sentence: str) -> None:
        """End these requests with finish_reason "error"."""
        for request in requests:
            if request.request_id in self.requests:
                self._finish(request, request.finish("error", error=sentence))

    @torch.inference_mode()
    def step(self) -> None:
        """Compute one step if there is any request."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return
        sampling = [chunk for chunk in chunks if chunk.samples]
        requests = [self.requests[chunk.sequence.request_id] for chunk in sampling]
        self._steps += 1
        try:
            sampled = self._compute(chunks, requests)
        except Exception:
            log.exception("a step of %d requests failed", len(chunks))
            self._failed_steps += 1
            self._failures_in_a_row += 1
            failed = [self.requests[chunk.sequence.request_id] for chunk in chunks]
            self.fail(failed, "The model failed on this request; the server's log has the reason.")
            return
        self._failures_in_a_row = 0
        self.scheduler.complete(chunks)
        for request, token in zip(requests, sampled, strict=True):
            self._advance(request, token)

    def _compute(self, chunks: Sequence[Chunk], requests: Sequence[Request]) -> list[Sampled]:
        """One forward pass, and a token for each of `requests`: the chunks that sample."""
        device = self.model.ops.device
        layout = [(c.sequence.num_computed, c.count, c.sequence.block_table) for c in chunks]
        step = Step.build(layout, self.limits.page_size, device)
        ids_T = torch.tensor([token for chunk in chunks for token in chunk.token_ids])
        hidden_TD = self.model.forward(ids_T.to(device), step, self._caches)
        if not requests:
            return []
        ends = zip(chunks, step.query_ends, strict=True)
        last = torch.tensor([end - 1 for chunk, end in ends if chunk.samples], device=device)
        logits_RV = self.model.logits(hidden_TD[last])
        return sample(logits_RV, [request.row for request in requests], self.vocab_size)

    def _advance(self, request: Request, sampled: Sampled) -> None:
        try:
            if request.num_generated == 0:
                self._prompt_tokens += request.num_prompt_tokens
            delta = request.append(sampled)
        except Exception:
            log.exception("request %s failed after sampling", request.request_id)
            self.fail([request], "The server failed on this answer; its log has the reason.")
            return
        self._generation_tokens += len(delta.token_ids)
        if delta.finish_reason is None:
            self._emit(request, delta)
        else:
            self._finish(request, delta)

    def _finish(self, request: Request, delta: Delta) -> None:
        """Free what the request holds, then tell its caller."""
        self._forget(request)
        self._emit(request, delta)

    def _forget(self, request: Request) -> None:
        del self.requests[request.request_id]
        self.scheduler.remove(request.sequence)

    def _emit(self, request: Request, delta: Delta) -> None:
        """Call back. A caller that raises has given its request up; the others go on."""
        try:
            request.on_delta(delta)
        except Exception:
            log.exception("the callback of request %s raised; aborted", request.request_id)
            if request.request_id in self.requests:
                self._forget(request)
