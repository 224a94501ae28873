"""Keeps text from outside from becoming control tokens on its way through a template."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from glm_portable.errors import UsageError

_PRIVATE_USE = range(0xE000, 0xF900)


class PlainText:
    """Swaps the first characters of control tokens for stand-ins, and back.

    The stand-ins are private-use characters found nowhere in `request`, so the swap can be undone
    exactly. One character stands for one: a template that strips, splits or measures text sees no
    difference, and whatever it cuts or joins, no control token can come out of protected text.
    """

    def __init__(self, request: Any, control_tokens: Iterable[str], tags: Iterable[str]) -> None:
        heads = sorted({token[0] for token in control_tokens})
        free = _unused(request)
        self._heads = re.compile("|".join(_head(head, tags) for head in heads) or "(?!)")
        self._stand_in = {head: chr(next(free)) for head in heads}
        self._original = {}
        for character, stand_in in self._stand_in.items():
            self._original[stand_in] = character
            self._original[f"\\u{ord(stand_in):04x}"] = character  # as an ASCII tojson writes it
        self._stand_ins = re.compile("|".join(map(re.escape, self._original)))

    def protect(self, value: Any) -> Any:
        """A copy of a JSON value, every string and key of it protected."""
        if isinstance(value, str):
            return self._heads.sub(lambda found: self._stand_in[found.group()], value)
        if isinstance(value, dict):
            return {self.protect(key): self.protect(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.protect(item) for item in value]
        return value

    def restore(self, text: str) -> str:
        """Text as it was before `protect`."""
        return self._stand_ins.sub(lambda found: self._original[found.group()], text)


def _head(head: str, tags: Iterable[str]) -> str:
    """A pattern for a first character, but not of a tag: templates look for <think> and </think>.

    The character stands in front, so that re finds it several times as fast as behind a condition:
    while it searches a megabyte no other thread runs.
    """
    rests = sorted(re.escape(tag[1:]) for tag in tags if tag.startswith(head))
    return re.escape(head) + (f"(?!{'|'.join(rests)})" if rests else "")


def _unused(request: Any) -> Iterator[int]:
    text = "\n".join(_strings(request))
    used = {ord(character) for character in set(text)}
    used |= {int(digits, 16) for digits in re.findall(r"\\u([0-9a-f]{4})", text)}
    yield from (code for code in _PRIVATE_USE if code not in used)
    raise UsageError("the messages use every private-use character (U+E000 to U+F8FF).")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
