"""Text as it is generated, cut before the first stop string."""

from collections.abc import Iterable
from typing import Protocol


class TextDecoder(Protocol):
    """Decodes tokens that arrive a few at a time; pieces never end inside a character."""

    def add(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete."""

    def flush(self) -> str:
        """The text that was waiting for more tokens."""


class Tokenizer(Protocol):
    """What the engine needs of `glm_portable.tokenizer.Tokenizer`."""

    vocab_size: int

    def stream(self) -> TextDecoder:
        """A decoder for one answer."""


class StopStrings:
    """Passes text on until a stop string is complete, which it keeps to itself.

    Of several stop strings the one that is complete first wins, and of those that are complete
    with the same character the longest. So the result does not depend on how the text is cut
    into pieces. Text that may turn out to be the start of a stop string is held back.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """What can be shown now. Sets `found` when a stop string is complete."""
        if not self._stop:
            return text
        if self.found is not None:
            return ""
        text = self._held + text
        present = [stop for stop in self._stop if stop in text]
        if present:
            self.found = min(present, key=lambda stop: (text.find(stop) + len(stop), -len(stop)))
            self._held = ""
            return text[: text.find(self.found)]
        shown = len(text) - self._may_become_stop(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _may_become_stop(self, text: str) -> int:
        """Length of the longest end of the text that a stop string starts with."""
        lengths = range(min(self._longest - 1, len(text)), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self._stop)), 0)


class AnswerText:
    """A request's tokens as text, cut before its stop strings. found: the one that ended it."""

    def __init__(self, decoder: TextDecoder, stop: Iterable[str]) -> None:
        stop = tuple(stop)
        self._decoder, self._stop = decoder, StopStrings(stop)
        self._decode = decoder.add  # looked up once and not for every token
        self._can_stop = bool(stop)
        self.found: str | None = None

    def add(self, token_id: int, may_stop: bool = True) -> str:
        """The text to show; no stop string begins in a token's text where it may not stop."""
        text = self._decode((token_id,))
        if self._can_stop and may_stop:
            text = self._stop.add(text)
            self.found = self._stop.found
        return text

    def finish(self) -> str:
        """The rest of the text, when there are no more tokens."""
        return self._stop.add(self._decoder.flush()) + self._stop.flush()
