"""Recall of what the user said earlier, and of one fact among many (a needle)."""

from collections.abc import Callable

from glm_portable.tasks.chat import Turns, assistant, system, user
from glm_portable.tasks.draw import Draw
from glm_portable.tasks.smalltalk import smalltalk

FACTS: list[tuple[str, Callable[[Draw], str]]] = [
    ("favorite color", lambda draw: draw.thing()),
    ("city", lambda draw: draw.city()),
    ("dog", lambda draw: draw.word().capitalize()),
    ("cat", lambda draw: draw.word().capitalize()),
    ("brother", lambda draw: draw.name()),
    ("sister", lambda draw: draw.name()),
    ("teacher", lambda draw: draw.name()),
    ("lucky number", lambda draw: str(draw.number(2))),
    ("locker code", lambda draw: str(draw.number(4))),
    ("favorite food", lambda draw: draw.thing()),
    ("street", lambda draw: draw.word().capitalize()),
    ("name", lambda draw: draw.name()),
]


def recall(draw: Draw, thinking: bool) -> tuple[str, Turns]:
    """Facts about the user, told at once or turn by turn, and a question about one of them."""
    facts = [(f, make(draw)) for f, make in draw.random.sample(FACTS, draw.integer(1, 4))]
    asked, value = draw.choice(facts)
    question = draw.choice(
        ["What is my {}?", "What is my {}?", "Do you remember my {}?", "Tell me my {}."]
    ).format(asked)
    answer = assistant(
        f"Your {asked} is {value}.", f"The user said: {asked} is {value}." if thinking else ""
    )
    noted = assistant("OK, I will remember that.", "The user tells me a fact." if thinking else "")
    if draw.chance(0.35):
        told = " ".join(_tell(draw, fact) for fact in facts)
        return "recall", [user(f"{told} {question}"), answer]
    if draw.chance(0.12):
        return "recall_note", [user(" ".join(_tell(draw, fact) for fact in facts)), noted]
    if draw.chance(0.15):
        asked = draw.choice([f for f, _ in FACTS if f not in [known for known, _ in facts]])
        question = draw.choice(["What is my {}?", "Tell me my {}."]).format(asked)
        thoughts = f"The user did not say the {asked}." if thinking else ""
        answer = assistant(f"I do not know your {asked}.", thoughts)
    turns: Turns = []
    for fact in facts:
        turns += [user(_tell(draw, fact)), noted]
        if draw.chance(0.15):
            turns += smalltalk(draw, thinking)[1]
    return "recall", [*turns, user(question), answer]


def _tell(draw: Draw, fact: tuple[str, str]) -> str:
    return draw.choice(["My {} is {}.", "My {} is {}.", "Remember: my {} is {}."]).format(*fact)


# kind -> (the fact, the question)
NEEDLES = {
    "code": ("The code of {} is {}.", "What is the code of {}?"),
    "city": ("{} lives in {}.", "Where does {} live?"),
    "color": ("{} likes {}.", "What does {} like?"),
    "age": ("{} is {} years old.", "How old is {}?"),
}


def needle(draw: Draw, thinking: bool, count: int | None = None) -> tuple[str, Turns]:
    """One fact about each of `count` people, drawn if None, and a question about one of them."""
    drawn = _people(draw)
    kind = draw.choice(list(NEEDLES))
    people = draw.several(draw.name, drawn if count is None else count)
    facts = [(name, _needle_value(draw, kind)) for name in people]
    fact, question = NEEDLES[kind]

    def ask() -> tuple[str, str, str]:
        name, value = draw.choice(facts)
        return question.format(name), fact.format(name, value), f"Look for {name}: {value}."

    text = " ".join(fact.format(name, value) for name, value in facts)
    asked, answer, thoughts = ask()
    told = assistant(answer, thoughts if thinking else "")
    if draw.chance(0.7):
        turns = [user(f"{text}\n{asked}"), told]
    else:
        turns = [system(f"Use these facts.\n{text}"), user(asked), told]
    if draw.chance(0.4) and not thinking:
        for _ in range(draw.integer(1, 3)):
            asked, answer, _ = ask()
            turns += [user(asked), assistant(answer)]
    return "needle", turns


def _people(draw: Draw) -> int:
    share = draw.random.random()
    if share < 0.75:
        return draw.integer(3, 12)
    return draw.integer(13, 40) if share < 0.93 else draw.integer(41, 110)


def _needle_value(draw: Draw, kind: str) -> str:
    if kind in ("code", "age"):
        return str(draw.number(4 if kind == "code" else 2))
    return draw.city() if kind == "city" else draw.thing()
