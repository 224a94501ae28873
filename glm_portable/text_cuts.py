"""Where a long text can be cut so that the tokens of its parts, in order, are those of the whole.

Tokenising takes some 170 bytes of memory for a byte of text, so it is done part by part.
"""

import json
import re
from collections.abc import Iterator

import tokenizers

SIZE = 64 * 1024
"""Characters."""

# A pre-tokenizer's pattern matches words, and words become tokens each on its own. With each of
# these no match crosses a cut and none before it looks beyond it: the one before ends with its
# letters, or with the line break, and those alternatives hold nothing else after that.
_PATTERNS = frozenset(
    {
        # GLM-4's and GLM-4.5's
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # the pocket model's
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\p{L}\p{N}](?=\p{Ll}))?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
_CUT = re.compile(r"[A-Za-z\u4e00-\u9fa5](?=[ \n，。])|\n(?=[!-~\u4e00-\u9fa5])")


def parts(text: str, size: int = SIZE) -> Iterator[str]:
    """The text in parts of `size` characters or a few more; many more where no cut is possible."""
    start = 0
    while start < len(text):
        end = _cut_after(text, start + size - 1)
        yield text[start:end]
        start = end


def _cut_after(text: str, start: int) -> int:
    # Piecewise: while it searches no other thread runs. The last character of a piece is there for
    # the one before it, and the first of the next.
    for at in range(start, len(text), SIZE):
        found = _CUT.search(text, at, at + SIZE + 1)
        if found:
            return found.end()
    return len(text)


def can_cut(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the cuts are right for this tokenizer, whose `spells_texts` is true."""
    if tokenizer.pre_tokenizer is None:
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    if any(_CUT.search(token.content) or token.single_word for token in added):
        return False
    match json.loads(tokenizer.pre_tokenizer.__getstate__()):
        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern in _PATTERNS
    return False


def spells_texts(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a byte-level tokenizer's tokens have exactly the bytes of the text that was encoded.

    Otherwise it drops some: a normalizer may, and added tokens that take the spaces beside them.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    taking = any(token.lstrip or token.rstrip for token in added)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    whole = all(tokenizer.token_to_id(character) is not None for character in alphabet)
    return tokenizer.normalizer is None and not taking and whole
