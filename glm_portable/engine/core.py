"""The engine without its thread: schedule, compute, sample, and hand out what came of it.

With speculative decoding a step computes a sequence's drafts behind its last token, and the
sequence keeps those that are what would have been sampled; then the next ones are drafted.
"""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from msgspec.structs import replace
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.engine.acceptance import Turn, accept
from glm_portable.engine.drafting import Computed, Drafter
from glm_portable.engine.kv_cache import PagePool
from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.logprobs import PromptLogprobs
from glm_portable.engine.observer import FinishedRequest, NullObserver, Observer
from glm_portable.engine.request import Request
from glm_portable.engine.sampling import Sampler
from glm_portable.engine.scheduler import Chunk, Scheduler
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import Delta, joined
from glm_portable.ops import KVCache, Ops, Step, ids

log = logging.getLogger(__name__)

UNHEALTHY_AFTER = 3
"""Failed steps in a row from which on the engine calls itself unhealthy."""


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

    vocab_size: how many tokens can be sampled. speculative: what to draft, None for nothing. A step
    that fails ends the requests in it and no others. Raises UsageError for a model that cannot
    draft.
    """

    def __init__(
        self,
        model: LanguageModel,
        limits: EngineLimits,
        vocab_size: int,
        speculative: SpeculativeConfig | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.model, self.limits, self.vocab_size = model, limits, vocab_size
        self.observer = observer or NullObserver()
        num_drafts = 0 if speculative is None else speculative.num_speculative_tokens
        self.pool = PagePool(limits.num_pages, limits.page_size)
        self.scheduler = Scheduler(
            self.pool,
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            num_drafts,
            prefix_caching=limits.enable_prefix_caching,
            chunked_prefill=limits.enable_chunked_prefill,
            by_priority=limits.scheduling_policy == "priority",
            unit=limits.unit,
        )
        self.requests: dict[str, Request] = {}
        self._prompt_tokens = self._generation_tokens = 0
        self._steps = self._failed_steps = self._failures_in_a_row = 0
        self._num_drafts = self._num_draft_tokens = 0
        self._accepted_by_position = [0] * num_drafts
        self._caches = model.allocate(limits.num_pages, limits.page_size)
        self._sampler = Sampler(vocab_size)
        self._drafter: Drafter | None = None
        if speculative is not None:
            self._drafter = Drafter(model, self._caches, speculative, vocab_size, limits.page_size)

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
            num_drafts=self._num_drafts,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=sum(self._accepted_by_position),
            accepted_by_position=tuple(self._accepted_by_position),
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
        self._steps += 1
        requests = [self.requests[chunk.sequence.request_id] for chunk in chunks]
        self._note_start(requests)
        try:
            hidden_TD, turns = self._compute(chunks, requests)
        except Exception:
            log.exception("a step of %d requests failed: %s", len(chunks), _names(chunks))
            self._fail_step(chunks)
            return
        drafted = self._complete(chunks, turns, hidden_TD)
        if drafted:
            self.scheduler.publish(chunks)
        self._note_tokens(turns)
        for turn in turns:
            self._advance(turn)
        if drafted:
            self._failures_in_a_row = 0
        else:
            self._fail_step(chunks)

    def _compute(
        self, chunks: Sequence[Chunk], requests: Sequence[Request]
    ) -> tuple[Tensor, list[Turn]]:
        """One forward pass; the hidden states, and the tokens of the requests that sample."""
        device = self.model.ops.device
        layout = []
        token_ids: list[int] = []
        for chunk in chunks:
            sequence, before = chunk.sequence, len(token_ids)
            start = sequence.num_computed
            token_ids += sequence.token_ids[start : start + chunk.count]
            token_ids += chunk.drafts
            layout.append((start, len(token_ids) - before, sequence.block_table))
        self.observer.on_step(len(token_ids))
        step = Step.build(layout, self.limits.page_size, device)
        hidden_TD = self.model.forward(ids(token_ids, device), step, self._caches)
        turns: list[Turn] = []
        rows: list[int] = []
        for chunk, request, end in zip(chunks, requests, step.query_ends, strict=True):
            if request.prompt_logprobs is not None:
                self._score_prompt(request.prompt_logprobs, chunk, hidden_TD, end)
            if chunk.samples:
                drafts = chunk.drafts
                turns.append(Turn(request, len(rows), drafts))
                rows += range(end - len(drafts) - 1, end) if drafts else (end - 1,)
        if turns:
            whole = len(rows) == len(token_ids)
            sampled_RD = hidden_TD if whole else hidden_TD[ids(rows, device)]
            accept(turns, self._logits(sampled_RD), self._sampler)
        return hidden_TD, turns

    def _score_prompt(
        self, scores: PromptLogprobs, chunk: Chunk, hidden_TD: Tensor, end: int
    ) -> None:
        """Of the chunk's part of a prompt; `end`: the row after its last one."""
        behind = end - len(chunk.drafts)
        rows_TD = hidden_TD[behind - chunk.count : behind]
        scores.take(self._logits, rows_TD, chunk.sequence.num_computed)

    def _logits(self, hidden_TD: Tensor) -> Tensor:
        """On the host where no bit may depend on other rows: a GPU's libraries sum the numbers of a
        row in an order that depends on how many rows there are (torch's cumsum does)."""
        logits_RV = self.model.logits(hidden_TD)
        alike = self.limits.enable_deterministic_inference and self.limits.batch_invariant
        return logits_RV.cpu() if alike else logits_RV

    def _complete(self, chunks: Sequence[Chunk], turns: Sequence[Turn], hidden_TD: Tensor) -> bool:
        """Note what the step has computed of each sequence, and draft; whether that went well."""
        if self._drafter is None:
            self.scheduler.complete(chunks)
            return True
        return self._draft(self._drafter, self._computed(chunks, turns), hidden_TD)

    def _computed(self, chunks: Sequence[Chunk], turns: Sequence[Turn]) -> list[Computed]:
        """Note what the step has computed of each sequence, the right ones of its drafts too."""
        starts = [chunk.sequence.num_computed for chunk in chunks]
        self.scheduler.complete(chunks)
        for turn in turns:
            if not turn.drafts:
                continue
            accepted = turn.num_accepted
            self.scheduler.accept(turn.request.sequence, accepted)
            self._num_drafts += 1
            self._num_draft_tokens += len(turn.drafts)
            for place in range(accepted):
                self._accepted_by_position[place] += 1
        going_on = {turn.request.sequence for turn in turns if turn.going_on}
        done, row = [], 0
        for chunk, start in zip(chunks, starts, strict=True):
            sequence = chunk.sequence
            end = min(sequence.num_computed, len(sequence.token_ids) - 1)
            done.append(Computed(sequence, start, end, row, sequence in going_on))
            row += chunk.width
        return done

    def _draft(self, drafter: Drafter, done: Sequence[Computed], hidden_TD: Tensor) -> bool:
        """Draft the next tokens; whether that went well."""
        try:
            drafter.draft(done, hidden_TD)
        except Exception:
            log.exception("drafting for %d requests failed", len(done))
            return False
        return True

    def _fail_step(self, chunks: Sequence[Chunk]) -> None:
        """End those of a step's requests that have not ended."""
        self._failed_steps += 1
        self._failures_in_a_row += 1
        ids = [chunk.sequence.request_id for chunk in chunks]
        failed = [self.requests[request_id] for request_id in ids if request_id in self.requests]
        self.fail(failed, "The model failed on this request; the server's log has the reason.")

    def _note_tokens(self, turns: Sequence[Turn]) -> None:
        """Enter the tokens of a step that has just ended into counts and timelines."""
        now = time.monotonic()
        first: list[float] = []
        following: list[float] = []
        for turn in turns:
            request, deltas = turn.request, turn.deltas
            if not deltas:
                continue
            timeline = request.timeline
            last = timeline.last_token
            if last is None:
                self._prompt_tokens += request.num_prompt_tokens
            count = len(deltas) if deltas[-1].token_ids else len(deltas) - 1  # failed at the last
            if not count:
                continue
            self._generation_tokens += count
            if last is None:
                timeline.first_token = now
                first.append(now - timeline.arrived)
            else:
                following.append(now - last)
            timeline.last_token = now
        self.observer.on_tokens(first, following)

    def _advance(self, turn: Turn) -> None:
        """Hand out what a request gained in the step."""
        request, deltas = turn.request, turn.deltas
        if deltas:
            delta = joined(deltas)
            if delta.finish_reason is None:
                self._emit(request, delta)
            else:
                if delta.finish_reason == "error":  # no number came of what its pages hold
                    self.scheduler.withdraw(request.sequence)
                self._finish(request, delta)
        if turn.failed:
            self.fail([request], "The server failed on this answer; its log has the reason.")

    def _finish(self, request: Request, delta: Delta) -> None:
        """Free what the request holds, then tell its caller."""
        self._forget(request)
        assert delta.finish_reason is not None
        self.observer.on_finish(
            FinishedRequest(
                request.request_id,
                delta.finish_reason,
                request.num_prompt_tokens,
                request.sequence.num_cached or 0,
                request.num_generated,
                request.params.max_tokens,
                request.timeline,
            )
        )
        self._emit(request, replace(delta, timeline=request.timeline))

    def _note_start(self, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            timeline = request.timeline
            if timeline.scheduled is None:
                timeline.scheduled = now

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


def _names(chunks: Sequence[Chunk]) -> str:
    return ", ".join(chunk.sequence.request_id for chunk in chunks)
