"""The tokens of a text's parts are those of the whole; a tokenizer of which that is not known is
left alone."""

import json
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_portable import text_cuts
from glm_portable.pocket import path

RAW = json.loads((path() / "tokenizer.json").read_text(encoding="utf-8"))
GLM = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer(**changes: Any) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(RAW | changes))


def splitting_by(pattern: str, prefix: bool = False, **split: Any) -> tokenizers.Tokenizer:
    steps = json.loads(json.dumps(RAW["pre_tokenizer"]))
    steps["pretokenizers"][0] |= {"pattern": {"Regex": pattern}} | split
    steps["pretokenizers"][1]["add_prefix_space"] = prefix
    return tokenizer(pre_tokenizer=steps)


def with_tag(content: str, **traits: Any) -> tokenizers.Tokenizer:
    tag = RAW["added_tokens"][-1] | {"content": content, **traits}
    return tokenizer(added_tokens=[*RAW["added_tokens"][:-1], tag])


def words(of: tokenizers.Tokenizer, text: str) -> list[str]:
    """What becomes tokens each on its own, tags aside."""
    return [word for word, _ in of.pre_tokenizer.pre_tokenize_str(text)]


BOTH = [tokenizer(), splitting_by(GLM)]
PIECES = st.one_of(
    st.sampled_from(
        "a b Z é 字 ， 。 1 12 \n \r\n \t ' 's ' ſ . !? - \u3000 \u2028 \x1c".split(" ")
    ),
    st.sampled_from([" ", "  ", "\n", "\n\n", " \n", "\n ", "'ll", "don't ", "he'", "!\n", "1\n"]),
    st.sampled_from(
        ["<think>", "</tool_call>", "/nothink", "<|user|>", "word ", "字。", "字，", "a\n"]
    ),
    st.text(max_size=3),
)
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@pytest.mark.parametrize("whole", BOTH, ids=["pocket", "GLM"])
@settings(deadline=None, max_examples=300)
@given(text=TEXTS, size=st.integers(1, 4))
def test_the_tokens_of_the_parts_are_those_of_the_whole(
    whole: tokenizers.Tokenizer, text: str, size: int
) -> None:
    assert text_cuts.can_cut(whole) and text_cuts.spells_texts(whole)
    found = list(text_cuts.parts(text, size))
    assert "".join(found) == text and all(found)
    ids = [i for part in found for i in whole.encode(part, add_special_tokens=False).ids]
    assert ids == whole.encode(text, add_special_tokens=False).ids
    # Two words may have the tokens of one.
    assert [word for part in found for word in words(whole, part)] == words(whole, text)


@pytest.mark.parametrize("text", ["a few words ", "one\ntwo\n", "字字。", "字，"])
def test_parts_are_little_longer_than_asked_for(text: str) -> None:
    lengths = [len(part) for part in text_cuts.parts(text * 1000, 100)]
    assert set(lengths[:-1]) <= set(range(100, 107)) and 0 < lengths[-1] < 107


@pytest.mark.parametrize("text", ["a" * 100, " " * 100, "!?" * 50, "\n" * 100, "<think>" * 20])
def test_what_has_no_place_to_cut_stays_whole(text: str) -> None:
    assert list(text_cuts.parts(text, 10)) == [text]


def test_a_cut_far_away_is_found() -> None:
    """Also one on the border of two pieces of text that are searched."""
    for length in range(text_cuts.SIZE, text_cuts.SIZE + 20):
        assert list(text_cuts.parts("a" * length + " b", 10)) == ["a" * length, " b"]


@pytest.mark.parametrize(
    "other",
    [
        splitting_by(r"\S+|\s+"),
        splitting_by(GLM, prefix=True),
        splitting_by(GLM, behavior="MergedWithNext"),
        splitting_by(GLM, invert=True),
        tokenizer(pre_tokenizer=None),
        tokenizer(pre_tokenizer=RAW["pre_tokenizer"]["pretokenizers"][1]),
        with_tag("<a tag>"),
        with_tag("<tag>", single_word=True),
    ],
)
def test_other_tokenizers_are_not_cut_for(other: tokenizers.Tokenizer) -> None:
    assert not text_cuts.can_cut(other)


@pytest.mark.parametrize(
    "other",
    [
        tokenizer(normalizer={"type": "NFC"}),
        with_tag("<tag>", lstrip=True),
        with_tag("<tag>", rstrip=True),
        tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [])),
    ],
)
def test_tokenizers_that_drop_bytes_are_told_apart(other: tokenizers.Tokenizer) -> None:
    assert not text_cuts.spells_texts(other)
