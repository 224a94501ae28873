"""The processes of a model that is split among ranks: started, loaded, watched and ended together.

This process is rank 0 and the others are its children. Each has a device of its own, or on the host
its share of the cores.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import torch

from glm_portable import hub, ops, pocket
from glm_portable.config import ModelConfig
from glm_portable.engine.core import LanguageModel
from glm_portable.engine.ranks import END, Leader, follow
from glm_portable.errors import UsageError
from glm_portable.glm import GLM
from glm_portable.model import Model
from glm_portable.parallel import SINGLE, Parallel, join, leave
from glm_portable.serve.remote.process import TOLD
from glm_portable.virtual import connect

ENDING_S = 10.0
"""For a rank to end by itself before it is killed, and for one that failed to be seen."""

KILLED = "was ended by signal"

Options = dict[str, Any]
"""What `GLM.load` takes."""


@dataclass
class Ranks:
    """parallel: this process's place. processes, pipes: of the other ranks, in their order."""

    parallel: Parallel = SINGLE
    processes: list[BaseProcess] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)
    ending: bool = False
    failing: threading.Lock = field(default_factory=threading.Lock)

    def leader(self, model: Model) -> LanguageModel:
        """What the engine computes with. Raises UsageError if another rank could not load."""
        if not self.processes:
            return model
        for rank in range(1, self.parallel.size):
            self.expect(rank)
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()
        return Leader(model, self.pipes, self._fail)

    def expect(self, rank: int) -> None:
        """Wait for a rank to say that all is well. Raises UsageError with its reason if not."""
        with suppress(EOFError):
            refused = self.pipes[rank - 1].recv()
            if refused is None:
                return
            raise UsageError(refused)
        raise UsageError(self._ended(rank))

    def close(self) -> None:
        """End the other ranks; those that do not end soon are killed."""
        self.ending, deadline = True, time.monotonic() + ENDING_S
        for pipe in self.pipes:
            with suppress(BrokenPipeError):
                pipe.send((END,))
            pipe.close()
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        leave()

    def _watch(self) -> None:
        """A rank that ends leaves the others waiting for it in the middle of a sum."""
        wait([process.sentinel for process in self.processes])
        if not self.ending:
            self._fail(None)

    def _fail(self, error: Exception | None) -> NoReturn:
        """End this process and the others at once, with one sentence that names the cause."""
        self.failing.acquire()  # for good: the first to see it has the word
        self.ending = True
        ready = wait([process.sentinel for process in self.processes], ENDING_S)
        gone = [rank for rank, p in enumerate(self.processes, 1) if p.sentinel in ready]
        sentences = [self._ended(rank) for rank in gone] or [f"rank 0 failed ({error!r})."]
        # A rank that was killed takes others with it, whose sums then fail: name it before those.
        sentence = next((s for s in sentences if KILLED in s), sentences[0])
        print(f"Error: {sentence} The server ends.", file=sys.stderr, flush=True)
        for process in self.processes:
            process.kill()
        os._exit(TOLD)  # the engine's thread may wait in a sum that nobody completes

    def _ended(self, rank: int) -> str:
        process, who = self.processes[rank - 1], f"rank {rank} of {self.parallel.size}"
        process.join(ENDING_S)
        code = process.exitcode
        if code is not None and code < 0:
            return f"{who} {KILLED} {-code}."
        return f"{who} ended with code {code}; its messages above say why."


@contextmanager
def start(model: str | None, size: int, expert_groups: int, options: Options) -> Iterator[Ranks]:
    """Ranks 1 to size - 1, which load the same model beside us. Raises UsageError.

    Ends them when the context ends.
    """
    if size == expert_groups == 1:
        yield Ranks()
        return
    folder = pocket.FOLDER if model is None else hub.resolve(model, options.get("revision"))
    Parallel(0, size, expert_groups).check(ModelConfig.load(folder))
    context = multiprocessing.get_context("spawn")
    ranks = Ranks(Parallel(0, size, expert_groups))
    with tempfile.TemporaryDirectory(prefix="glm-portable-") as scratch:
        meeting = Path(scratch) / "meeting"
        try:
            for rank in range(1, size):
                place = Parallel(rank, size, expert_groups)
                ours, theirs = context.Pipe()
                arguments = (place, meeting, theirs, folder, options)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                theirs.close()
                ranks.pipes.append(ours)
                ranks.processes.append(process)
            library = take_device(ranks.parallel, options)
            for rank in range(1, size):
                ranks.expect(rank)
            ranks.parallel = join(0, size, library, meeting, expert_groups)
            yield ranks
        except BaseException:
            for child in ranks.processes:  # which may be in the middle of loading
                child.kill()
            raise
        finally:
            ranks.close()


def take_device(place: Parallel, options: Options) -> str:
    """Make this rank's device, or its share of the cores, ours; returns the library to join by.

    Raises UsageError if there are too few devices.
    """
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if devices:
        torch.accelerator.set_device_index(place.rank % devices)
    backend, virtual = options["backend"], options["virtual"]
    machine = ops.load(backend) if virtual is None else connect(backend, virtual)
    if machine.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // place.size))
    elif devices < place.size:
        raise UsageError(
            f"--tensor-parallel-size {place.size} needs as many devices, and torch sees {devices}: "
            "lower it, or make more devices visible."
        )
    return ops.collectives(machine)


def _serve(
    place: Parallel, meeting: Path, pipe: Connection, folder: Path, options: Options
) -> None:
    """The whole life of another rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for rank 0 to act upon
    threading.Thread(target=_end_with_rank_0, name="rank 0", daemon=True).start()
    logging.basicConfig(format=f"rank {place.rank}: %(levelname)s %(name)s: %(message)s")
    try:
        library = take_device(place, options)
        pipe.send(None)
        parallel = join(place.rank, place.size, library, meeting, place.expert_groups)
        glm = GLM.load(folder, parallel=parallel, on_note=lambda note: None, **options)
        pipe.send(None)
    except UsageError as error:
        pipe.send(str(error))
        sys.exit(2)
    follow(glm.model, pipe)
    leave()


def _end_with_rank_0() -> None:
    """However it ended: a sum that waits for it would not end by itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
