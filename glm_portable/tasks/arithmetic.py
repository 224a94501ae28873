"""Sums, differences, products and word problems, worked out digit by digit when thinking."""

from glm_portable.tasks.chat import Turns, assistant, user
from glm_portable.tasks.draw import Draw

SKILLS = {"+": "add", "-": "sub", "*": "mul"}
PHRASES = [
    "What is {}?",
    "{} = ?",
    "Calculate {}.",
    "Compute {}",
    "{}",
    "How much is {}?",
    "Please tell me {}.",
]


def arithmetic(draw: Draw, thinking: bool) -> tuple[str, Turns]:
    """(skill, question and answer); without thinking only small sums and differences."""
    a, operator, b = _operands(draw, thinking)
    result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    thoughts = f"{a}{operator}{b}: {_steps(a, operator, b)}" if thinking else ""
    space = draw.choice(["", "", " "])
    if operator != "*" and draw.chance(0.25):
        question, answer = _word_problem(draw, a, operator, b, result)
        return "word_problem", [user(question), assistant(answer, thoughts)]
    question = draw.choice(PHRASES).format(f"{a}{space}{operator}{space}{b}")
    answer = f"{a} {operator} {b} = {result}"
    return SKILLS[operator], [user(question), assistant(answer, thoughts)]


def _operands(draw: Draw, thinking: bool) -> tuple[int, str, int]:
    while True:
        operator = draw.choice(["+", "+", "-", "-", "*"] if thinking else "+-")
        if operator == "*":
            a, b = draw.integer(2, 9), draw.integer(11, 99)
        else:
            low, high = _range(draw, thinking)
            a, b = draw.integer(low, high), draw.integer(low, high)
        if operator == "-" and a < b:
            a, b = b, a
        if draw.in_split(f"{a}{operator}{b}"):
            return a, operator, b


def _range(draw: Draw, thinking: bool) -> tuple[int, int]:
    if not thinking:
        return 1, 20
    return (10, 999) if draw.chance(0.6) else (2, 99)


def _word_problem(draw: Draw, a: int, operator: str, b: int, result: int) -> tuple[str, str]:
    name = draw.name()
    things = draw.choice(["apples", "books", "coins", "cards", "balls"])
    if operator == "+":
        question = f"{name} has {a} {things} and gets {b} more. "
        question += f"How many {things} does {name} have now?"
    else:
        question = f"{name} has {a} {things} and gives away {b}. How many {things} are left?"
    return question, f"{name} has {result} {things}."


def _steps(a: int, operator: str, b: int) -> str:
    """The school method: from the last digit to the first, with carry or borrow."""
    if operator == "*":
        tens, ones = b // 10, b % 10
        high, low = a * tens * 10, a * ones
        return f"{a}*{ones}={low}, {a}*{tens}0={high}, {high}+{low}={a * b}."
    step = _add_step if operator == "+" else _subtract_step
    steps, carry = [], 0
    for i in range(max(len(str(a)), len(str(b)))):
        text, carry = step(a // 10**i % 10, b // 10**i % 10, carry)
        steps.append(text)
    return ", ".join(steps) + "."


def _add_step(x: int, y: int, carry: int) -> tuple[str, int]:
    total = x + y + carry
    return f"{x}+{y}" + (f"+{carry}" if carry else "") + f"={total}", total // 10


def _subtract_step(x: int, y: int, borrow: int) -> tuple[str, int]:
    rest = x - y - borrow
    text = f"{x}-{y}" + (f"-{borrow}" if borrow else "")
    return (f"{text}+10={rest + 10}", 1) if rest < 0 else (f"{text}={rest}", 0)
