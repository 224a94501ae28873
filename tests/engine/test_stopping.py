"""Stop strings: never shown, found across pieces, and the same however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_portable.engine.stopping import AnswerText, StopStrings
from tests.engine.fake_model import WordStream, word

TEXT = st.text("abc", max_size=20)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=3)


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By definition: the first character that completes a stop string, and the longest one."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(TEXT, STOPS, st.lists(st.integers(0, 20), max_size=6))
def test_any_cut_gives_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = StopStrings(stops)
    shown = ""
    for start, end in zip(edges, edges[1:], strict=False):
        shown += stream.add(text[start:end])
        assert whole(text, stops)[0].startswith(shown), "what is shown is never taken back"
    shown += stream.flush()
    assert (shown, stream.found) == whole(text, stops)


@given(TEXT, STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    stream = StopStrings(stops)
    shown = stream.add(text)
    if stream.found is None:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize("stops", [["b c", "c"], ["c", "b c"]])
def test_the_longest_of_two_that_end_together_wins(stops: list[str]) -> None:
    stream = StopStrings(stops)
    assert (stream.add("a b c d"), stream.found) == ("a ", "b c")


def test_a_stop_string_across_tokens() -> None:
    text = AnswerText(WordStream(), [word(3) + word(4)[0]])
    assert text.add(2) == word(2)[:-1]  # the decoder keeps the blank until it is sure
    assert text.add(3) == word(2)[-1]  # "ad" may become "ad a"
    assert text.add(4) == "" and text.found == "ad a"
    assert text.finish() == ""


def test_what_was_held_back_is_shown_at_the_end() -> None:
    text = AnswerText(WordStream(), ["ad ae"])
    assert text.add(3) == "" and text.found is None
    assert text.finish() == word(3)


def test_a_stop_string_completed_by_the_decoders_rest_is_not_shown() -> None:
    text = AnswerText(WordStream(), ["d "])
    assert text.add(3) + text.finish() == "a"


def test_no_stop_string_begins_before_the_answer_may_stop() -> None:
    text = AnswerText(WordStream(), ["a"])
    assert text.add(0, may_stop=False) == "aa" and text.found is None
    assert text.add(0) == " " and text.found == "a"
