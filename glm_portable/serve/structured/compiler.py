"""Compiled grammars, kept; new ones are tried in a process of their own first."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from glm_portable.engine.grammar import Grammar, GrammarError, TokenTable, Vocabulary
from glm_portable.serve.errors import ApiError, bad_request
from glm_portable.serve.structured.kept import Kept
from glm_portable.serve.structured.probe import CPU_S, Probe
from glm_portable.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_WAITING = 64


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """What grammars need of a tokenizer."""
    return TokenTable(
        tuple(map(tokenizer.token_bytes, range(tokenizer.vocab_size))),
        tuple(tokenizer.control_tokens.values()),
        tokenizer.eos_token_id,
    )


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """A tokenizer's, to compile grammars with."""
    return Vocabulary(token_table(tokenizer), tokenizer.encode)


@dataclass(frozen=True)
class Wanted:
    """A grammar to compile. field: of the request, for errors."""

    text: str
    field: str


class Compiler:
    """Compiles one grammar at a time, on a thread of its own; generation goes on meanwhile.

    What has been compiled is kept, and so is what was refused; the least recently used go first.
    """

    def __init__(self, tokenizer: Tokenizer, cpu_s: float = CPU_S) -> None:
        """cpu_s: seconds of processor time that trying a grammar may take."""
        self._tokenizer, self._cpu_s = tokenizer, cpu_s
        self._writers = ThreadPoolExecutor(4, thread_name_prefix="grammar-text")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._kept: Kept[Grammar | str] = Kept()
        self._waiting = 0

    def prepare(self) -> None:
        """Make ready what the first grammar needs: for a large vocabulary that takes seconds."""
        self._thread.submit(self._compile, 'start: ""')

    async def compile(self, write: Callable[[], Wanted]) -> Grammar:
        """The grammar that `write` writes. Raises ApiError: of `write`, 400, or 503.

        One that is kept does not wait for the others to be compiled.
        """
        loop = asyncio.get_running_loop()
        if self._waiting >= MAX_WAITING:
            message = "Too many formats are waiting to be compiled; send the request again later."
            raise ApiError(503, message, code="unavailable", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            wanted = await loop.run_in_executor(self._writers, write)
            result = self._kept.find(wanted.text)
            if result is None:
                result = await loop.run_in_executor(self._thread, self._compile, wanted.text)
        finally:
            self._waiting -= 1
        if isinstance(result, str):
            raise bad_request(f"{wanted.field} {result}.", wanted.field, "invalid_value")
        return result

    def from_gbnf(self, text: str) -> str:
        """GBNF as Lark; for `write`. Raises GrammarError."""
        return self._probe.from_gbnf(text)

    def _compile(self, text: str) -> Grammar | str:
        """The grammar, or why it is refused."""
        result = self._kept.find(text)  # it may have been compiled while this one waited
        if result is None:
            try:
                self._probe.check(text)
                result = self._vocabulary.compile(text)
            except GrammarError as error:
                log.info("refused a grammar: %.500s", error.reason)
                result = str(error)
            self._kept.keep(text, result)
        return result

    @cached_property
    def _table(self) -> TokenTable:
        return token_table(self._tokenizer)

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self._table, self._cpu_s)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._table, self._tokenizer.encode)
