"""Words and numbers of a report that can go anywhere: a terminal, XML, a page.

Findings may quote what a server answered, so they are text of strangers.
"""

import math
import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Terminals obey these, XML forbids them, UTF-8 has no surrogates. Newline and tab stay."""


def plain(text: str) -> str:
    """The text with a replacement character for each that a terminal or XML would choke on."""
    return _CONTROL.sub("\ufffd", text)


def figure(value: float) -> str:
    """Three digits, and all of a whole number."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e9:
        return f"{int(value)}"
    return f"{value:.3g}"


def count(number: int, noun: str) -> str:
    """1 check, 2 checks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
