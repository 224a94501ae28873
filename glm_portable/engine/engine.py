"""The engine: requests in from any thread, deltas out, one thread that owns model and caches."""

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from glm_portable.engine import admission
from glm_portable.engine.admission import EngineDraining
from glm_portable.engine.completion import Answer, Completion, EngineFailure
from glm_portable.engine.core import EngineCore, LanguageModel
from glm_portable.engine.examination import Examiner, OnResult
from glm_portable.engine.limits import EngineLimits, default_limits
from glm_portable.engine.logprobs import PromptLogprobs
from glm_portable.engine.observer import Observer
from glm_portable.engine.request import Request
from glm_portable.engine.sampling import RowSampler
from glm_portable.engine.scheduler import Sequence as TokenSequence
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.engine.stats import EngineStats
from glm_portable.engine.stopping import AnswerText, Tokenizer
from glm_portable.engine.types import Delta, SamplingParams

__all__ = [
    "Completion",
    "Engine",
    "EngineDraining",
    "EngineFailure",
    "EngineLimits",
    "EngineStats",
    "SpeculativeConfig",
    "default_limits",
]

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model. Every method may be called from any thread.

    Use it as a context manager, or call `start` and, at the end, `close`. seed: requests without
    a seed of their own get this one plus their number. speculative: what to draft with the model's
    MTP layer, None for nothing. observer: sees times and counts. Raises UsageError for a model
    that has no such layer.

    after_step: called on the engine's thread when it has handed out all deltas of a step or has
    handled what came in.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        limits: EngineLimits,
        seed: int = 0,
        speculative: SpeculativeConfig | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.limits, self._tokenizer, self._seed = limits, tokenizer, seed
        self._vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        self._eos_ids = frozenset(model.config.eos_token_id)
        self._core = EngineCore(model, limits, self._vocab_size, speculative, observer)
        self._examiner = Examiner(model)
        # What the engine's thread has yet to see: a request, the id of one to cancel, whom to tell
        # of an examination, or None just to wake it up.
        self._inbox: queue.SimpleQueue[Request | str | OnResult | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards the three below, and what goes into the inbox
        self._thread: threading.Thread | None = None
        self._draining = self._closing = False
        self._idle = threading.Event()
        self._idle.set()
        self.after_step: Callable[[], None] = lambda: None

    def start(self) -> Self:
        """Spawn the thread; no effect if it runs already."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
        return self

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        *,
        name: str = "",
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a request and return its id: a number, after `name`, so that logs tell whose it is.

        priority: the lower the earlier, where the scheduling policy is priority. cache_salt: the
        request shares cached pages with requests of the same salt alone.

        on_delta is called on the engine's thread, so it must not block; of all its deltas the
        last one, and no other, has a finish_reason. If it raises, the request is given up.
        Raises UsageError for a request that cannot be served, EngineDraining during shutdown.
        """
        request = self._request(list(prompt_ids), params, on_delta, name, priority, cache_salt)
        with self._lock:
            if self._draining:
                raise EngineDraining("The server is shutting down; send the request again later.")
            self._idle.clear()
            self._inbox.put(request)
        return request.request_id

    def cancel(self, request_id: str) -> None:
        """End a request with finish_reason "abort" before the next step, freeing its pages.

        No effect on a request that has ended.
        """
        self._inbox.put(request_id)

    def examine(self, on_result: OnResult) -> None:
        """Compare every weight with how it was when this was first called.

        A part of the model is read between one step and the next. on_result is called on the
        engine's thread with what is wrong, for the end of a sentence, or None. Raises
        EngineDraining if the engine has been closed.
        """
        with self._lock:
            if self._closing:
                raise EngineDraining("The server is shutting down; examine it before that.")
            self._inbox.put(on_result)

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests, and wait until all accepted ones have ended.

        timeout: seconds to wait at most; with 0 it only refuses. Returns whether all have ended.
        """
        with self._lock:
            self._draining = True
        return self._idle.wait(timeout)

    def close(self) -> None:
        """Refuse new requests, abort the accepted ones and end the thread. May be repeated."""
        with self._lock:
            self._draining = self._closing = True
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()
        else:
            self._abort_all()

    def stats(self) -> EngineStats:
        """A look at the engine as of now."""
        stats = self._core.stats()
        stats.waiting += self._inbox.qsize()
        return stats

    def generate(self, prompts: Iterable[tuple[Sequence[int], SamplingParams]]) -> list[Completion]:
        """Answer all prompts, in their order; starts the engine if need be.

        Raises what `submit` raises, and EngineFailure if one of the answers failed; then, and
        when interrupted, the others are cancelled.
        """
        self.start()
        answers: dict[str, Answer] = {}
        try:
            for prompt_ids, params in prompts:
                answer = Answer()
                answers[self.submit(prompt_ids, params, answer.on_delta)] = answer
            return [answer.wait() for answer in answers.values()]
        finally:
            for request_id, answer in answers.items():
                if not answer.ended.is_set():
                    self.cancel(request_id)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        name: str,
        priority: int,
        cache_salt: str,
    ) -> Request:
        admission.check_prompt(prompt_ids, self._vocab_size)
        admission.check_params(params, self._vocab_size)
        admission.check_priority(priority)
        length = admission.max_length(prompt_ids, params, self.limits.max_model_len)
        self._core.scheduler.check(length)
        number = next(self._numbers)
        eos_ids = frozenset() if params.ignore_eos else self._eos_ids
        stop_ids = {i for i in eos_ids.union(params.stop_token_ids) if 0 <= i < self._vocab_size}
        seed = self._seed + number if params.seed is None else params.seed
        request_id = f"{name}-{number}" if name else f"{number}"
        sequence = TokenSequence(request_id, prompt_ids, length, priority, cache_salt)
        sequence.skips_cached = self.limits.enable_prefix_caching and params.may_skip_prompt
        if sequence.skips_cached:  # here and not on the engine's thread
            pages = (len(prompt_ids) - 1) // self.limits.page_size
            self._core.scheduler.page_digests(sequence, pages)
        return Request(
            params=params,
            on_delta=on_delta,
            sequence=sequence,
            num_prompt_tokens=len(prompt_ids),
            eos_ids=eos_ids,
            text=AnswerText(self._tokenizer.stream(), params.stop),
            row=RowSampler(params, seed, stop_ids, prompt_ids),
            prompt_logprobs=PromptLogprobs.of(prompt_ids, params.prompt_logprobs, self._vocab_size),
        )

    def _run(self) -> None:
        while not self._closing:
            try:
                self._take_inbox()
                self._core.step()
                self._examiner.advance()
                self.after_step()
            except Exception:
                # Of the engine itself, not of a request: whoever is in it gets an answer.
                log.exception("the engine failed; all its requests are ended")
                everyone = list(self._core.requests.values())
                self._core.fail(everyone, "The engine failed; the server's log has the reason.")
                self.after_step()
        self._abort_all()
        self.after_step()

    def _take_inbox(self) -> None:
        """Handle what has come in; wait for it if there is nothing else to do."""
        if self._idle_now() and not self._examiner.busy:
            self._handle(self._inbox.get())
        while not self._inbox.empty():
            self._handle(self._inbox.get())

    def _idle_now(self) -> bool:
        with self._lock:
            if self._core.requests or not self._inbox.empty():
                return False
            self._idle.set()
            return True

    def _handle(self, message: Request | str | OnResult | None) -> None:
        if isinstance(message, Request):
            self._core.add(message)
        elif isinstance(message, str):
            self._core.abort(message)
        elif message is not None:
            self._examiner.add(message)

    def _abort_all(self) -> None:
        while not self._inbox.empty():
            self._handle(self._inbox.get())
        for request_id in list(self._core.requests):
            self._core.abort(request_id)
        self._examiner.close()
        self._idle.set()
