"""Seeded choices for one chat, from the training pools or from the held-out ones."""

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from glm_portable.tasks.pools import CITIES, CONSONANTS, NAMES, PIECES, THINGS, VOWELS, Pool

Split = Literal["train", "test"]
T = TypeVar("T")


class Draw:
    """The random numbers of one chat: the same (seed, index, split) always draws the same.

    Invented words, long numbers and sums are split by a checksum: a tenth of all of them is held
    out, and `held_out` tells which.
    """

    def __init__(self, seed: int, index: int, split: Split) -> None:
        self.random = random.Random(f"{seed}-{index}-{split}")
        self.test = split == "test"

    def choice(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def integer(self, low: int, high: int) -> int:
        """Between low and high, both included."""
        return self.random.randint(low, high)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def in_split(self, key: str) -> bool:
        """Whether this chat's split may use what `key` describes."""
        return held_out(key) == self.test

    def pick(self, pool: Pool) -> str:
        """A word of the split's own part of a pool."""
        if self.test:
            # Decides nothing, but without this draw all later ones, and with them every chat that
            # the published figures were measured on, would be others.
            self.chance(0.6)
        return self.choice(pool.test if self.test else pool.train)

    def word(self, low: int = 2, high: int = 3, ending: float = 0.35) -> str:
        """An invented word: `low` to `high` syllables, or pieces of the vocabulary.

        ending: how often a syllable word ends in a consonant; 1 leaves out the piece words.
        """
        while True:
            if ending < 1 and self.chance(0.5):
                word = "".join(self.choice(PIECES) for _ in range(self.integer(1, high)))
                if not 3 <= len(word) <= 11:
                    continue
            else:
                word = self._syllables(self.integer(low, high))
                if self.chance(min(ending, 0.5)):
                    word += self.choice("nrsl")
            if self.in_split("w" + word):
                return word

    def _syllables(self, count: int) -> str:
        return "".join(self.choice(CONSONANTS) + self.choice(VOWELS) for _ in range(count))

    def name(self) -> str:
        """A person's name, real or invented."""
        return self.pick(NAMES) if self.chance(0.3) else self.word().capitalize()

    def city(self) -> str:
        return self.pick(CITIES) if self.chance(0.45) else self.word().capitalize()

    def thing(self) -> str:
        """A lower-case word."""
        return self.pick(THINGS) if self.chance(0.6) else self.word(2, 2)

    def number(self, digits: int) -> int:
        """A number of that many digits; short ones are too few to hold any out."""
        low, high = 10 ** (digits - 1), 10**digits - 1
        while True:
            number = self.integer(low, high)
            if digits < 3 or self.in_split(f"n{number}"):
                return number

    def several(self, make: Callable[[], T], count: int) -> list[T]:
        """`count` different values."""
        found: list[T] = []
        while len(found) < count:
            value = make()
            if value not in found:
                found.append(value)
        return found


def held_out(key: str) -> bool:
    """Whether a word, number or sum (by its key) belongs to the held-out tenth."""
    return zlib.crc32(key.encode()) % 10 == 0
