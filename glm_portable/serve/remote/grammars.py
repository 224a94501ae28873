"""Grammars in the engine's process. The server's has tried them: here they are compiled again."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from glm_portable.engine.grammar import Grammar, GrammarError, Vocabulary
from glm_portable.serve.structured.kept import Kept

log = logging.getLogger(__name__)


class Grammars:
    """Compiles one grammar at a time, on a thread of its own; what has been compiled is kept.

    vocabulary: makes the one to compile with, when it is first needed.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._make_vocabulary = vocabulary
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._kept: Kept[Grammar] = Kept()

    def prepare(self) -> None:
        """Make ready what the first grammar needs: for a large vocabulary that takes seconds."""
        self._thread.submit(lambda: self._vocabulary)

    def find(self, text: str) -> Grammar | None:
        """A grammar that is kept."""
        return self._kept.find(text)

    def compile(self, text: str, use: Callable[[Grammar | GrammarError], None]) -> None:
        """Have `use` called on the thread with the grammar, or with why there is none."""
        self._thread.submit(lambda: use(self._compile(text)))

    def _compile(self, text: str) -> Grammar | GrammarError:
        grammar = self._kept.find(text)  # it may have been compiled while this one waited
        if grammar is None:
            try:
                grammar = self._vocabulary.compile(text)
            except GrammarError as error:
                return error
            except Exception as error:  # nobody else hears of it on this thread
                log.exception("a grammar could not be compiled")
                return GrammarError(repr(error))
            self._kept.keep(text, grammar)
        return grammar

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self._make_vocabulary()
