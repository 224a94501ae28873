"""Where the time of a step goes, told from the moments at which the engine calls its parts.

The engine is given the model, the tokenizer and the callbacks, so these can note when they are
called; nothing of the engine is changed. Between two of them lies one part of its work.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from glm_portable.engine.stopping import TextDecoder
from glm_portable.engine.types import Delta
from glm_portable.tokenizer import Tokenizer

_COLD = 3
_READINGS = 1000
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

    def parts(self, next_forward: float, tick: float) -> dict[str, float]:
        """Seconds of each part; the model's own are left out, and `tick` of each clock reading.

        prepare: the inbox, scheduling, building the step. append: what a request keeps of a token.
        """
        inside = self.detokenise + self.hand_over
        watching = self.deltas * tick  # of one reading a delta; four are made
        return {
            "prepare": next_forward - self.last_delta,
            "sample": self.first_token - self.logits,
            "append": self.last_delta - self.first_token - inside - 2 * watching,
            "detokenise": self.detokenise - watching,
            "hand over": self.hand_over - watching,
        }


class Watch:
    """Notes the moments of every step, by a clock of the engine's thread."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        begin = clock()
        for _ in range(_READINGS):
            clock()
        self._tick = (clock() - begin) / (_READINGS + 1)
        self.clocks: dict[str, Callable[[], float]] = {}
        self._cpu: list[dict[str, float]] = []
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

    def medians(self) -> dict[str, float]:
        """Median seconds of each part, over the steps between the first three and the last."""
        found = [
            step.parts(after.forward, self._tick)
            for step, after in zip(self._steady, self._steady[1:], strict=False)
        ]
        return {part: median(step[part] for step in found) for part in PARTS}

    def period(self) -> float:
        """Median seconds from one forward pass to the next."""
        pairs = zip(self._steady, self._steady[1:], strict=False)
        return median(after.forward - step.forward for step, after in pairs)

    def note_cpu(self) -> None:
        """Read every clock of `clocks`: before the first step and after the last."""
        self._cpu.append({name: clock() for name, clock in self.clocks.items()})

    def cpu_a_step(self, name: str) -> float:
        """Seconds by a clock between the two notes, for each step."""
        first, last = self._cpu
        return (last[name] - first[name]) / len(self.steps)

    @property
    def _steady(self) -> list[Moments]:
        """Without the steps that read prompts or meet cold caches, and the one that ends."""
        return self.steps[_COLD:-1]


def cpu_of(thread: threading.Thread) -> Callable[[], float]:
    """A clock of the processor time of a running thread."""
    assert thread.ident is not None
    number = time.pthread_getcpuclockid(thread.ident)
    return lambda: time.clock_gettime(number)


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
