"""A process that tries a client's grammar first: what would stall or end the server ends this.

The library bounds its work by counts of steps, which some grammars get around (an intersection of a
few dozen patterns runs for hours). Here the kernel bounds the processor time and the memory of each
grammar; what passes has been compiled and followed for some tokens at a known price.
"""

import json
import logging
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from os import environ
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from glm_portable.engine.grammar import (
    GrammarError,
    GrammarState,
    TokenTable,
    Vocabulary,
    lark_of_gbnf,
)

CPU_S = 4.0
"""Seconds of processor time for one grammar."""

MEMORY = 2 * 2**30
"""Bytes that one grammar may add to the process's address space."""

_STEPS = 32
"""Tokens of a random answer that a grammar is followed for."""


class Probe:
    """The process, from the side of the server. Thread-safe.

    It starts when it is first needed, and again after a grammar has ended it.
    """

    def __init__(self, table: TokenTable, cpu_s: float = CPU_S) -> None:
        self._table, self._cpu_s = table, cpu_s
        self._lock = threading.Lock()  # one job at a time
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, grammar: str) -> None:
        """Raises GrammarError if the grammar cannot be used, or only at too high a price."""
        self._do({"grammar": grammar})

    def from_gbnf(self, text: str) -> str:
        """`lark_of_gbnf`, at a bounded price."""
        return str(self._do({"gbnf": text}))

    def _do(self, job: Mapping[str, str]) -> str | None:
        with self._lock:
            process = self._running()
            answer = _ask(process, job)
            if answer is None:
                self._process = None
        if answer is None:
            code = process.wait()
            killed = signal.Signals(-code).name if code < 0 else code
            raise GrammarError(f"the probe was ended by {killed}")
        if answer["error"] is not None:
            raise GrammarError(answer["error"])
        result: str | None = answer["result"]
        return result

    def _running(self) -> subprocess.Popen[bytes]:
        """Raises RuntimeError if it does not start."""
        if self._process is None:
            root = Path(__file__).parents[3]
            process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**environ, "PYTHONPATH": str(root)},
            )
            weakref.finalize(self, _end, process)
            if _ask(process, _packed(self._table) | {"cpu_s": self._cpu_s}) is None:
                raise RuntimeError(f"the grammar probe did not start: exit code {process.wait()}")
            self._process = process
        return self._process


def _ask(process: subprocess.Popen[bytes], message: Mapping[str, Any]) -> Any:
    """The process's answer; None if it ended instead."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _packed(table: TokenTable) -> dict[str, Any]:
    pieces = [piece.decode("latin-1") for piece in table.pieces]
    return {"pieces": pieces, "control_ids": table.control_ids, "eos_ids": table.eos_ids}


def _unpacked(message: Mapping[str, Any]) -> TokenTable:
    pieces = tuple(piece.encode("latin-1") for piece in message["pieces"])
    return TokenTable(pieces, tuple(message["control_ids"]), tuple(message["eos_ids"]))


def main() -> None:
    """The process itself: a token table comes first, then grammars, one JSON text a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the server's children too
    logging.disable()  # the server logs why a grammar was refused
    setup = json.loads(sys.stdin.readline())
    vocabulary = Vocabulary(_unpacked(setup))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer()
    for line in sys.stdin:
        # SIGPROF ends a process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, setup["cpu_s"])
        try:
            result = do(vocabulary, json.loads(line))
        except GrammarError as error:
            answer(error=error.reason)
        else:
            answer(result)
        signal.setitimer(signal.ITIMER_PROF, 0)


def answer(result: str | None = None, error: str | None = None) -> None:
    print(json.dumps({"result": result, "error": error}), flush=True)


def do(vocabulary: Vocabulary, job: Mapping[str, str]) -> str | None:
    if "gbnf" in job:
        return lark_of_gbnf(job["gbnf"])
    follow(vocabulary, vocabulary.compile(job["grammar"]).start())
    return None


def follow(vocabulary: Vocabulary, state: GrammarState) -> None:
    """Raises GrammarError if the grammar fails within a few random tokens."""
    words_W = np.zeros(vocabulary.words, dtype=np.uint32)
    choose = Random(0)
    for _ in range(_STEPS):
        state.fill(words_W)
        if state.failure is not None:
            raise GrammarError(state.reason)
        bits = np.unpackbits(words_W.view(np.uint8), bitorder="little")
        bits[list(vocabulary.table.eos_ids)] = 0
        allowed = np.flatnonzero(bits)
        if not allowed.size:
            return
        state.append(int(allowed[choose.randrange(allowed.size)]))


if __name__ == "__main__":
    main()
