"""The detector of repetition."""

import pytest

from glm_portable.tasks import generate
from glm_portable.verify.endpoint.text import loop


@pytest.mark.parametrize(
    "text, piece",
    [
        ("Hello " + "!" * 40, "!"),
        ("It is so. " + "I will check again. " * 6, "ain. I will check ag"),
        ("the cat and the dog " * 2, None),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12", None),
        ("", None),
    ],
)
def test_a_loop_at_the_end(text: str, piece: str | None) -> None:
    found = loop(text)
    assert (found is None) == (piece is None)
    if piece is not None:
        assert found is not None and sorted(found) == sorted(piece)


def test_a_loop_in_the_middle_that_is_left_again() -> None:
    assert loop("we should check the code " * 8 + "and now for something else.")


def test_right_answers_are_no_loops() -> None:
    for index in range(300):
        answer = generate(1, index, "test").messages[-1]
        assert loop(f"{answer['reasoning_content']}\n{answer['content']}") is None, answer
