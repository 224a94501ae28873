"""What a server is compared with: prompt counts, and answers with their log probabilities.

It is made from a model (`making`), stored as one JSON file, or, for the published models, known
from their templates and their vocabulary: those counts need no model, but have no answers.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glm_portable.errors import UsageError
from glm_portable.serve.chat import Format
from glm_portable.verify.endpoint.chat import Question

VERSION = 1


@dataclass(frozen=True)
class Position:
    """After `index` tokens of prompt and answer: the likeliest next ones as (id, text, logprob)."""

    index: int
    top: tuple[tuple[int, str, float], ...]

    @property
    def by_text(self) -> dict[str, float]:
        """Tokens that are part of a character have no text of their own and are left out."""
        return {text: value for _, text, value in self.top if "\ufffd" not in text}

    @property
    def by_id(self) -> dict[str, float]:
        return {str(token): value for token, _, value in self.top}


@dataclass(frozen=True)
class Recorded:
    """A question, the reference's greedy answer, and the distributions at some of their tokens.

    pieces: the text of each token of the answer. text, calls: the answer as clients see it.
    """

    question: Question
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str
    calls: tuple[tuple[str, str], ...]
    positions: tuple[Position, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.answer_ids


@dataclass(frozen=True)
class Reference:
    """What is known of the model that should be served.

    name: in findings. family: the layout of its calls and its thinking. prompt_tokens: by the name
    of the conversation (`conversations.COUNTED`). plain: how far the same computation in plain
    BF16 is off (`distance.Spread.measures`), empty if it was not computed. about: what made
    it.
    """

    name: str
    family: Format
    prompt_tokens: Mapping[str, int]
    recorded: tuple[Recorded, ...] = ()
    plain: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        text = json.dumps({"version": VERSION, **asdict(self)}, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Raises UsageError if the file is none that `write` wrote."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw.pop("version")
            if version != VERSION:
                raise UsageError(
                    f"{path} is of version {version!r}, not {VERSION}: write it again with "
                    "glm-portable verify endpoint-reference."
                )
            recorded = tuple(map(_recorded, raw.pop("recorded")))
            return cls(recorded=recorded, **raw)
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"{path} is no file that glm-portable verify endpoint-reference wrote "
                f"({type(error).__name__}: {error})."
            ) from None


def _recorded(raw: dict[str, Any]) -> Recorded:
    positions = tuple(
        Position(p["index"], tuple((i, t, v) for i, t, v in p["top"])) for p in raw.pop("positions")
    )
    return Recorded(
        question=Question(**raw.pop("question")),
        positions=positions,
        prompt_ids=tuple(raw.pop("prompt_ids")),
        answer_ids=tuple(raw.pop("answer_ids")),
        pieces=tuple(raw.pop("pieces")),
        calls=tuple((name, arguments) for name, arguments in raw.pop("calls")),
        **raw,
    )


# Prompt counts of GLM-4.5, Air and 4.6, and of 4.7: their published templates over GLM-4's
# vocabulary, which has not changed. Only English text, of which no reading is in doubt.
_NAMES = (
    *("question", "thinking on", "thinking off", "system", "history with reasoning", "tools"),
    *("tools, thinking off", "tool result", "two tool results", "typed arguments"),
    *("/nothink typed", "/nothink typed, thinking off"),
)
_COUNTS: dict[Format, tuple[int, ...]] = {
    "glm45": (6, 6, 10, 11, 28, 178, 225, 217, 245, 238, 13, 16),
    "glm47": (6, 6, 6, 10, 24, 174, 217, 206, 227, 222, 13, 13),
}
_PUBLISHED = re.compile(r"glm-?4[.p]?([567])", re.IGNORECASE)
_FLASH = re.compile(r"flash", re.IGNORECASE)


def published(name: str) -> Reference | None:
    """What is known of a published model by its name; None for any other."""
    found = _PUBLISHED.search(name)
    if not found or _FLASH.search(name):  # GLM-4.7-Flash has another vocabulary
        return None
    family: Format = "glm47" if found[1] == "7" else "glm45"
    counts = dict(zip(_NAMES, _COUNTS[family], strict=True))
    about = {"prompt counts": "published template, GLM-4's vocabulary"}
    return Reference(f"GLM-4.{found[1]}", family, counts, about=about)


def without_answers(reference: Reference) -> Reference:
    """Its prompt counts alone."""
    return replace(reference, recorded=(), plain={})
