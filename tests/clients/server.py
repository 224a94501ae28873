"""`glm-portable serve` as a process of its own, on a free port."""

import collections
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0
"""Patience for something that must happen; never how long it takes."""

_MAIN = "from glm_portable.cli import main; main()"
_READY = re.compile(r" at (http://\S+)/v1 ")


@dataclass
class Server:
    """A served pocket model. lines: the last that it wrote."""

    url: str
    process: subprocess.Popen[str]
    lines: collections.deque[str]

    @property
    def api(self) -> str:
        return f"{self.url}/v1"


@contextmanager
def serve(python: str, *options: str, expect_exit: Sequence[int] = (0,)) -> Iterator[Server]:
    """Serve on a free port with the interpreter `python`; leaving the block drains and ends it."""
    command = [python, "-c", _MAIN, "serve", "--port", "0", *options]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    lines: collections.deque[str] = collections.deque(maxlen=200)
    ready, urls = threading.Event(), list[str]()

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if found := _READY.search(line):
                urls.append(found.group(1))
                ready.set()
        ready.set()

    threading.Thread(target=follow, daemon=True).start()
    try:
        assert ready.wait(WAIT_S) and urls, "\n".join(["the server did not start:", *lines])
        yield Server(urls[0], process, lines)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert code in expect_exit, "\n".join([f"the server ended with {code}:", *lines])
