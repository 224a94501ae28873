"""Where the time of a step goes, told from the moments at which the engine calls its parts.

The engine is given the model, the tokenizer and the callbacks, so these can note when they are
called; nothing of the engine is changed. Between two of them lies one part of its work.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from glm_portable.engine.stopping import TextDecoder
from glm_portable.engine.types import Delta
from glm_portable.tokenizer import Tokenizer

PARTS = ("prepare", "sample", "append", "detokenise", "hand over")


@dataclass
class Moments:
    """Of one step: clock readings, and sums of seconds."""

    forward: float
    logits: float = 0.0
    first_token: float = 0.0
    last_delta: float = 0.0
    detokenise: float = 0.0
    hand_over: float = 0.0
    deltas: int = 0

    def parts(self, next_forward: float) -> dict[str, float]:
        """Seconds of each part; the model's own are left out.

        prepare: the inbox, scheduling, building the step. append: what a request keeps of a token.
        """
        inside = self.detokenise + self.hand_over
        return {
            "prepare": next_forward - self.last_delta,
            "sample": self.first_token - self.logits,
            "append": self.last_delta - self.first_token - inside,
            "detokenise": self.detokenise,
            "hand over": self.hand_over,
        }


class Watch:
    """Notes the moments of every step."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.steps: list[Moments] = []

    def forward(self) -> None:
        self.steps.append(Moments(self._clock()))

    def logits(self) -> None:
        self.steps[-1].logits = self._clock()

    def tokenizer(self, inner: Tokenizer) -> "WatchedTokenizer":
        return WatchedTokenizer(inner, self)

    def callback(self, inner: Callable[[Delta], None]) -> Callable[[Delta], None]:
        def on_delta(delta: Delta) -> None:
            begin = self._clock()
            inner(delta)
            end, step = self._clock(), self.steps[-1]
            step.hand_over += end - begin
            step.last_delta, step.deltas = end, step.deltas + 1

        return on_delta

    def medians(self, sequences: int) -> dict[str, float]:
        """Median seconds of each part, over the steps in which all sequences got a token."""
        found = [
            step.parts(after.forward)
            for step, after in zip(self.steps, self.steps[1:], strict=False)
            if step.deltas == after.deltas == sequences
        ]
        return {part: median(step[part] for step in found) for part in PARTS}

    def periods(self) -> list[float]:
        """Seconds from one forward pass to the next."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [after.forward - step.forward for step, after in pairs]


class WatchedTokenizer:
    """Makes decoders that add their time to the step's."""

    def __init__(self, inner: Tokenizer, watch: Watch) -> None:
        self.vocab_size = inner.vocab_size
        self._inner, self._watch = inner, watch

    def stream(self) -> TextDecoder:
        return _WatchedDecoder(self._inner.stream(), self._watch)


class _WatchedDecoder:
    def __init__(self, inner: TextDecoder, watch: Watch) -> None:
        self._inner, self._watch = inner, watch

    def add(self, ids: Iterable[int]) -> str:
        clock, step = self._watch._clock, self._watch.steps[-1]
        begin = clock()
        text = self._inner.add(ids)
        step.detokenise += clock() - begin
        step.first_token = step.first_token or begin
        return text

    def flush(self) -> str:
        return self._inner.flush()
