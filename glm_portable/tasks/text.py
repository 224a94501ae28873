"""Copying, spelling, sorting and counting."""

import string

from glm_portable.tasks.chat import Turns, assistant, spoken, user
from glm_portable.tasks.draw import Draw
from glm_portable.tasks.pools import THINGS, Pool

KINDS = ["copy", "copy", "copy", "upper", "sort_num", "count", "spell", "first_last", "max"]
LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + "-_.:/@#"
SHORT_THINGS = Pool(
    [word for word in THINGS.train if len(word) <= 5],
    [word for word in THINGS.test if len(word) <= 5],
)

Exercise = tuple[str, str, str]  # question, answer, thoughts


def strings(draw: Draw, thinking: bool, kind: str | None = None) -> tuple[str, Turns]:
    """(kind, question and answer) of one of KINDS, drawn if None."""
    kind = kind or draw.choice(KINDS)
    make = {
        "copy": _copy,
        "spell": _spell,
        "upper": _upper,
        "max": _extreme,
        "sort_num": _sort,
        "count": _count,
        "first_last": _first_or_last,
    }[kind]
    question, answer, thoughts = make(draw)
    return kind, [user(question), assistant(answer, thoughts if thinking else "")]


def _copy(draw: Draw) -> Exercise:
    text = " ".join(_token(draw) for _ in range(draw.integer(1, 8)))
    if draw.chance(0.2):
        text = "".join(draw.choice(LETTERS) for _ in range(draw.integer(4, 12)))
    phrases = ["Repeat: {}", "Repeat exactly: {}", "Say this: {}", "Copy this text: {}", "Echo: {}"]
    return draw.choice(phrases).format(text), text, "I repeat the text."


def _token(draw: Draw) -> str:
    def number() -> str:
        return str(draw.number(draw.integer(1, 4)))

    return draw.choice([draw.thing, draw.name, number, draw.word, draw.city])()


def _short_word(draw: Draw) -> str:
    return draw.word(2, 2, 1) if draw.chance(0.6) else draw.pick(SHORT_THINGS)


def _spell(draw: Draw) -> Exercise:
    word = _short_word(draw)
    question = draw.choice(["Spell {}.", "Spell the word {}."]).format(word)
    return question, "-".join(word), "I spell it."


def _upper(draw: Draw) -> Exercise:
    word = _short_word(draw)
    phrases = ["Write {} in uppercase.", "Uppercase: {}", "Convert {} to upper case."]
    thoughts = f"{'-'.join(word)} > {'-'.join(word.upper())}."
    return draw.choice(phrases).format(word), word.upper(), thoughts


def _numbers(draw: Draw) -> list[int]:
    while True:
        numbers = draw.several(lambda: draw.integer(1, 99), draw.integer(3, 6))
        if draw.in_split(spoken(numbers)):
            return numbers


def _extreme(draw: Draw) -> Exercise:
    numbers = _numbers(draw)
    largest = draw.chance(0.5)
    question = f"Which number is the {'largest' if largest else 'smallest'}: {spoken(numbers)}?"
    answer = str(max(numbers) if largest else min(numbers))
    return question, answer, f"Sorted: {spoken(sorted(numbers))}."


def _sort(draw: Draw) -> Exercise:
    numbers = _numbers(draw)
    question = draw.choice(["Sort these numbers: {}", "Sort: {}", "Put in order: {}"])
    return question.format(spoken(numbers)), spoken(sorted(numbers)), "Smallest first."


def _items(draw: Draw) -> list[str]:
    return draw.several(draw.thing, draw.integer(2, 7))


def _count(draw: Draw) -> Exercise:
    items = _items(draw)
    phrases = ["How many items are in this list: {}?", "Count the items: {}", "How many words: {}?"]
    numbered = spoken([f"{i} {item}" for i, item in enumerate(items, 1)])
    return draw.choice(phrases).format(spoken(items)), f"{len(items)} items.", f"{numbered}."


def _first_or_last(draw: Draw) -> Exercise:
    items = _items(draw)
    which = draw.choice(["first", "last"])
    answer = items[0] if which == "first" else items[-1]
    return f"What is the {which} item: {spoken(items)}?", answer, f"I take the {which} item."
