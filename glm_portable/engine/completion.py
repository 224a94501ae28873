"""A whole answer, for callers that do not want it in deltas."""

import threading
from dataclasses import dataclass

from glm_portable.engine.types import Delta, FinishReason, TokenLogprob


class EngineFailure(Exception):
    """A request ended with an error; the message is its one sentence."""


@dataclass(frozen=True)
class Completion:
    """The fields are those of the deltas it came in."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None


class Answer:
    """Collects the deltas of one request on the engine's thread, for another that waits."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._deltas: list[Delta] = []

    def on_delta(self, delta: Delta) -> None:
        self._deltas.append(delta)
        if delta.finish_reason is not None:
            self.ended.set()

    def wait(self) -> Completion:
        """Block until the request has ended. Raises EngineFailure if it failed."""
        self.ended.wait()
        last = self._deltas[-1]
        if last.finish_reason is None or last.finish_reason == "error":
            raise EngineFailure(last.error or "The request failed.")
        return Completion(
            token_ids=tuple(token for delta in self._deltas for token in delta.token_ids),
            text="".join(delta.text for delta in self._deltas),
            logprobs=tuple(entry for delta in self._deltas for entry in delta.logprobs),
            prompt_logprobs=self._deltas[0].prompt_logprobs,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
        )
