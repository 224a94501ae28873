"""Several processes with gloo between them, on which a test runs one function.

They start once for all tests of a session, as importing torch takes longer than any of the tests.
"""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from glm_portable.parallel import Parallel, join

ANSWER_S = 300.0
"""Nothing here takes more than seconds; beyond this a rank hangs and all are killed."""


class Ranks:
    """`count` processes, of which `run` uses the first ones."""

    def __init__(self, count: int, prepare: Callable[[], None] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        meeting = Path(self._folder.name) / "meeting"
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            arguments = (rank, count, meeting, theirs, prepare)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """function(Parallel, *arguments) on ranks 0 to size - 1; what each of them returned."""
        for pipe in self._pipes:  # the others must help to make the group
            pipe.send((size, function, arguments))
        answers = [self._answer(pipe) for pipe in self._pipes]
        for fault, _ in answers:
            assert fault is None, fault
        return [value for _, value in answers[:size]]

    def _answer(self, pipe: Connection) -> tuple[str | None, Any]:
        if not wait([pipe], ANSWER_S):
            self.close()
            raise AssertionError(f"a rank did not answer within {ANSWER_S:g} s")
        found: tuple[str | None, Any] = pipe.recv()
        return found

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()


def _serve(
    rank: int, count: int, meeting: Path, pipe: Connection, prepare: Callable[[], None] | None
) -> None:
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    join(rank, count, "gloo", meeting)
    groups: dict[int, dist.ProcessGroup] = {}
    while True:
        size, function, arguments = pipe.recv()
        if size not in groups:
            groups[size] = dist.new_group(list(range(size)))
        try:
            alone = rank >= size
            ours = Parallel(rank, size, group=groups[size])
            pipe.send((None, None if alone else function(ours, *arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))
