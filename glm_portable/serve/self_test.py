"""Whether the model still computes what it computed when the server started.

A short fixed text is continued greedily and the log probabilities of the likeliest tokens are
compared with those of the first time. Rounding differs with what else is in a step, which moves
them by hundredths; a broken kernel moves them by more than `BOUND`. The text visits few experts, so
the engine compares every weight with the first time too, bit by bit.
"""

import asyncio
import math
import queue
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass

from glm_portable.engine.admission import EngineDraining
from glm_portable.engine.completion import Answer, EngineFailure
from glm_portable.engine.types import SamplingParams, TokenLogprob
from glm_portable.errors import UsageError
from glm_portable.serve.errors import ApiError, unavailable
from glm_portable.serve.generation import Engine, Generation, Job
from glm_portable.tokenizer import Tokenizer

TEXT = "In 1969 the quick brown fox wrote f(x) = 3x + 7; 敏捷的狐狸 jumped over 42 lazy dogs, then"
# With prompt_logprobs every token is computed anew, whatever the cache holds of the text.
PARAMS = SamplingParams(
    temperature=0, max_tokens=4, ignore_eos=True, logprobs=20, prompt_logprobs=0
)
BOUND = 0.15
"""Nats, on average over the tokens compared; see docs/operations.md for what was measured."""

INTERVAL_S = 10.0
"""A result is used again for so long: asking more often costs nothing."""


@dataclass(frozen=True)
class Outcome:
    """drift: mean distance of the log probabilities from the first ones, None if it failed."""

    drift: float | None
    failure: str | None


class SelfTest:
    """Runs as a request among the others, so it takes a few tokens of some steps; one at a time."""

    def __init__(
        self, prompt_ids: Sequence[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job, self._clock = Job(prompt_ids, PARAMS), clock
        self._first: tuple[TokenLogprob, ...] | None = None
        self._last = Outcome(0.0, None)
        self._ended = -math.inf
        self._running: asyncio.Task[Outcome] | None = None

    @property
    def failure(self) -> str | None:
        """One sentence if the last run failed."""
        return self._last.failure

    @classmethod
    def of(cls, tokenizer: Tokenizer, max_model_len: int) -> "SelfTest":
        """With as much of the text as fits into the window."""
        room = max_model_len - (PARAMS.max_tokens or 0)
        return cls(tokenizer.encode(TEXT)[: max(1, room)])

    def record(self, engine: Engine) -> tuple[TokenLogprob, ...]:
        """Compute the numbers to compare with; blocks. Raises UsageError if there are none.

        The engine keeps what it compares the weights with. Not on the thread on which `engine`
        calls for its deltas.
        """
        examined: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        engine.examine(examined.put)
        if (fault := examined.get()) is not None:
            raise UsageError(f"the model fails its self-test: {fault}.")
        answer = Answer()
        engine.submit(self._job.prompt_ids, PARAMS, answer.on_delta, name="self-test")
        try:
            self._first = answer.wait().logprobs
        except EngineFailure as error:
            raise UsageError(f"the model fails its self-test: {error}") from None
        return self._first

    def expect(self, first: tuple[TokenLogprob, ...]) -> None:
        """Take these, which were computed elsewhere, as those to compare with."""
        self._first = first

    async def run(self, engine: Engine) -> Outcome:
        """The result of a run now, of one that is under way, or of one just over."""
        if self._running is None:
            if self._clock() - self._ended < INTERVAL_S:
                return self._last
            # In a context of its own: it is not part of the exchange that happened to ask.
            self._running = asyncio.create_task(self._run(engine), context=Context())
        # Whoever gives up waiting leaves it to the others.
        return await asyncio.shield(self._running)

    async def _run(self, engine: Engine) -> Outcome:
        try:
            now = await self._compute(engine)
            self._last = self._compare(now, await self._examine(engine))
        except EngineDraining as error:
            raise unavailable(str(error)) from None
        except ApiError as error:
            if error.status == 503:  # the server is ending; that says nothing of the numbers
                raise
            self._last = Outcome(None, f"The self-test failed: {error.message}")
        finally:
            self._ended, self._running = self._clock(), None
        return self._last

    async def _compute(self, engine: Engine) -> tuple[TokenLogprob, ...]:
        found: list[TokenLogprob] = []
        async with Generation(engine, [self._job], set()) as generation:
            generation.start()
            while await generation.wait():
                for _, delta in generation.arrived():
                    found += delta.logprobs
        return tuple(found)

    async def _examine(self, engine: Engine) -> str | None:
        found: asyncio.Queue[str | None] = asyncio.Queue()
        engine.examine(found.put_nowait)
        return await found.get()

    def _compare(self, now: tuple[TokenLogprob, ...], fault: str | None) -> Outcome:
        """fault: of the weights."""
        if self._first is None:
            self._first = now
        moved = drift(self._first, now)
        if fault is not None:
            return Outcome(moved, f"The self-test failed: {fault}.")
        if moved <= BOUND:
            return Outcome(moved, None)
        return Outcome(
            moved,
            f"The self-test failed: the log probabilities of a fixed text are {moved:.3g} from "
            f"those at the start on average, more than {BOUND}; the weights are as they "
            "were, so kernels or the device are wrong.",
        )


def drift(then: Sequence[TokenLogprob], now: Sequence[TokenLogprob]) -> float:
    """Mean distance of the log probabilities of the tokens that were likeliest then.

    As far as both generated the same tokens: after a near tie went the other way, the texts
    differ. A token that is not among the likeliest any more counts as the last of them.
    """
    distances: list[float] = []
    for before, after in zip(then, now, strict=False):
        known = dict(after.top)
        least = min(known.values(), default=-math.inf)
        distances += [
            abs(logprob - known.get(token, least))
            for token, logprob in before.top
            if math.isfinite(logprob)
        ]
        if before.token_id != after.token_id:
            break
    return sum(distances) / max(1, len(distances))
