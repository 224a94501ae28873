"""What an answer must spell: grammars in llguidance's Lark dialect, and the tokens they allow next.

The one module that knows the library. Torch-free, and light: a process that only tries a grammar
imports this alone.

A grammar speaks of text, not of tokens: a tag such as <tool_call> is the same whether it is one
token or spelled out. Control tokens are never allowed, except the model's end-of-text tokens where
the grammar is complete.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Words = NDArray[np.uint32]
"""Tokens as bits, 32 in a word, the lowest first; 1 is allowed."""

TOO_COMPLEX = "The format asked for became too complex to follow; simplify it."

_SLOW_S = 1.0
"""Seconds of computing after which a mask is the last one that its request gets."""

_THREADS = 8


def _limits() -> LLParserLimits:
    """A step's fuel is about 7 ms; a lexer of so many states takes about 20 MB."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=10_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class GrammarError(Exception):
    """A grammar that cannot be used; the text says why, and can follow the name of its field.

    reason: the library's own words, or what happened to it; for the log, not for a client.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        found = ((pattern.search(reason), sentence) for pattern, sentence in _EXPLAINED)
        told = next((sentence.format(*match.groups()) for match, sentence in found if match), None)
        super().__init__(told or "cannot be turned into a grammar; see docs/structured-output.md")


_EXPLAINED = [
    (re.compile(pattern), sentence)
    for pattern, sentence in (
        (r'Unimplemented keys: \["([^"]{1,60})"', "uses {0}, which is not supported"),
        (r"oneOf constraints", "uses oneOf where several may hold at once; write anyOf"),
        (r"min/maxProperties", "uses minProperties or maxProperties beside optional properties"),
        (r"patternPropert", "uses patternProperties of which two can match the same name"),
        (r"Unsatisfiable", "contradicts itself: no value satisfies it"),
        (r"NoExtension", "cannot be satisfied by any text"),
        (r"Pointer .* does not exist", "has a $ref that leads nowhere"),
        (r"GBNF: (.{1,200})", "is not GBNF that can be read: {0}"),
        (r"registry", "has a $ref that leads out of the schema"),
        (
            r"lookaround|look-around|backreference|regex",
            "holds a regular expression that is wrong, or uses lookaround or backreferences, which "
            "are not supported",
        ),
        (
            r"too |limit|fuel|exhausted|memory|items in|ended by",
            "is too large or too complex to enforce; simplify it",
        ),
    )
]


@dataclass(frozen=True)
class TokenTable:
    """What a grammar needs of a tokenizer.

    pieces: each token's bytes, empty for an unused id. control_ids: tokens that are no text.
    eos_ids: those of them that end an answer.
    """

    pieces: tuple[bytes, ...]
    control_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]

    def spell(self, text: str) -> list[int]:
        """Tokens that spell text, the longest first, as far as there are any.

        A stand-in for the tokenizer's own way.
        """
        left, ids = text.encode(), []
        while fitting := [n for n in range(1, self._longest + 1) if left[:n] in self._ids]:
            ids.append(self._ids[left[: fitting[-1]]])
            left = left[fitting[-1] :]
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        control = {*self.control_ids, *self.eos_ids}
        return {p: i for i, p in enumerate(self.pieces) if p and i not in control}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids))


class _Wrapper:
    """A token table in the shape that the library reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable, encode: Callable[[str], list[int]]) -> None:
        self.tokens, self.special_token_ids = list(table.pieces), list(table.control_ids)
        self.eos_token_id, self._encode = table.eos_ids[0], encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Vocabulary:
    """A tokenizer's tokens, prepared for grammars; building it takes seconds for 150,000 tokens.

    encode: how the tokenizer spells text; where a grammar leaves one text alone, its tokens for it
    are the ones allowed. Thread-safe.
    """

    def __init__(self, table: TokenTable, encode: Callable[[str], list[int]] | None = None) -> None:
        self.table, self.size = table, len(table.pieces)
        wrapper: Any = _Wrapper(table, encode or table.spell)
        self._tokenizer = LLTokenizer(wrapper, self.size, list(table.eos_ids))

    @property
    def words(self) -> int:
        """How many words a mask has."""
        return -(-self.size // 32)

    def compile(self, text: str) -> "Grammar":
        """Raises GrammarError. Neither time nor memory is safely bounded: try unknown ones apart.

        text: Lark, or the library's JSON list of grammars. Other threads go on meanwhile.
        """
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=_limits())
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return Grammar(self, matcher, text)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """For the masks of many answers."""
        threads = min(_THREADS, os.cpu_count() or 1)
        return ThreadPoolExecutor(threads, thread_name_prefix="grammar-mask")


class Grammar:
    """A compiled grammar; any number of answers follow it, each with a state of its own.

    text: what it was compiled from.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher, text: str) -> None:
        self.vocabulary, self._matcher, self.text = vocabulary, matcher, text

    def start(self) -> "GrammarState":
        return GrammarState(self.vocabulary, self._matcher.deep_copy())


class GrammarState:
    """How far one answer has come in its grammar; depends on the tokens appended, and no more.

    failure: one sentence, once the grammar cannot be followed any further. reason: of the failure,
    in the library's words.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self.vocabulary, self._matcher = vocabulary, matcher
        self.failure: str | None = None
        self.reason = ""

    @property
    def complete(self) -> bool:
        """Whether nothing but the end of the text can follow, or it has come."""
        return self.failure is None and self._matcher.is_stopped()

    def append(self, token_id: int) -> None:
        """The token that was chosen."""
        if self.failure is None and not self._matcher.consume_token(token_id):
            self._fail(self._matcher.get_error())

    def fill(self, words_W: Words) -> None:
        """Write which tokens may come next. After a failure the words mean nothing."""
        if self.failure is not None:
            return
        begin = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(words_W.ctypes.data, words_W.nbytes)
        seconds = time.thread_time() - begin
        # In its error state the library allows the end of the text, as if all were well.
        if self._matcher.is_error():
            self._fail(self._matcher.get_error())
        elif seconds > _SLOW_S:
            self._fail(f"a mask took {seconds:.1f} s")

    def _fail(self, reason: str) -> None:
        log.warning("a grammar cannot be followed any further: %.500s", reason)
        self.failure, self.reason = TOO_COMPLEX, reason


def fill(states: Sequence[GrammarState], words_RW: Words) -> None:
    """`GrammarState.fill` for many answers, several at a time."""
    shares = min(_THREADS, os.cpu_count() or 1, len(states))
    if shares < 2:
        _fill_share(states, words_RW, 0, 1)
        return
    pool = states[0].vocabulary.pool
    running = [pool.submit(_fill_share, states, words_RW, n, shares) for n in range(shares)]
    for share in running:
        share.result()


def _fill_share(states: Sequence[GrammarState], words_RW: Words, first: int, step: int) -> None:
    for row in range(first, len(states), step):
        states[row].fill(words_RW[row])


_WHITESPACE = r"\x20|\x0A\x20{0,16}"
"""What may stand between the parts of a JSON text: without a bound a model can write it forever."""


def literal(text: str) -> str:
    """Exactly this text, in Lark."""
    return json.dumps(text)


def regex(pattern: str, *, ascii_classes: bool = False) -> str:
    """All of the text matches, in Lark. ascii_classes: \\d and \\w as in JSON Schema."""
    return f"/{regex_to_lark(pattern, 'dw' if ascii_classes else '')}/"


def without(*tags: str) -> str:
    """Text that holds none of `tags`, in Lark; usable in terminals."""
    any_of = "|".join(re.escape(tag) for tag in tags)
    return f"/(?s:.*)/ & ~{regex(f'(?s:.*)({any_of})(?s:.*)')}"


def json_value(schema: Mapping[str, Any]) -> str:
    """A JSON text that satisfies a schema, in Lark; usable in rules."""
    options = {"whitespace_pattern": _WHITESPACE}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def together(main: str, **parts: str) -> str:
    """One grammar of several: in `main` and the parts, @name stands for the part of that name."""
    grammars = [{"lark_grammar": main}]
    grammars += [{"name": name, "lark_grammar": text} for name, text in parts.items()]
    return json.dumps({"grammars": grammars})


def lark_of_gbnf(text: str) -> str:
    """A grammar in GBNF (`root ::= ...`) as Lark. Raises GrammarError.

    Takes time in the square of the number of rules.
    """
    try:
        lark = gbnf_to_lark(text)
    except RecursionError:
        raise GrammarError("too deeply nested") from None
    except Exception as error:  # the library raises nothing more specific
        raise GrammarError(f"GBNF: {error}") from None
    return lark.removeprefix("%llguidance {}")
