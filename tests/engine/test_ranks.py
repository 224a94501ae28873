"""What rank 0 tells the others: every call, in order, with the numbers of the step."""

import threading
from collections.abc import Sequence
from dataclasses import fields
from multiprocessing import Pipe
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.engine.ranks import END, Leader, follow
from glm_portable.ops import KVCache, Step
from glm_portable.parallel import SINGLE


class Recorder:
    """Stands for a model, and writes down what it is asked to compute."""

    dtype, parallel, ops = torch.float32, SINGLE, ops.load("reference")

    def __init__(self) -> None:
        self.config: Any = type("Config", (), {"hidden_size": 8})()
        self.asked: list[Any] = []

    def allocate(self, pages: int, page_size: int) -> list[KVCache]:
        self.asked.append((pages, page_size))
        return []

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        self.asked.append((ids_T, step))
        if not len(ids_T):
            raise MemoryError("no room")
        return torch.ones(len(ids_T), 8)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        self.asked.append(hidden_TD.shape)
        return hidden_TD

    def mtp_forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, caches: Sequence[KVCache]
    ) -> tuple[Tensor, Tensor]:
        self.asked.append((next_ids_T, step))
        self.asked.append(hidden_TD.shape)
        return hidden_TD, hidden_TD

    def mtp_logits(self, hidden_TD: Tensor) -> Tensor:
        self.asked.append(("mtp", hidden_TD.shape))
        return hidden_TD


class Ended(Exception):
    pass


def fail(error: Exception) -> NoReturn:
    raise Ended(str(error))


STEP = Step.build([(3, 2, [4, 1]), (0, 3, [2])], 4, torch.device("cpu"))


def test_the_others_repeat_every_call() -> None:
    ours, theirs = Pipe()
    leading, following = Recorder(), Recorder()
    thread = threading.Thread(target=follow, args=(following, theirs), daemon=True)
    thread.start()
    leader = Leader(leading, [ours], fail)  # type: ignore[arg-type]  # a stand-in for the model
    caches = leader.allocate(7, 16)
    hidden = leader.forward(torch.arange(5), STEP, caches)
    leader.logits(hidden[[1, 4]])
    leader.mtp_logits(leader.mtp_forward(torch.arange(5, 10), hidden, STEP, caches)[0][[3]])
    ours.send((END,))
    thread.join(30)
    assert not thread.is_alive()
    assert leading.asked[0] == following.asked[0] == (7, 16)
    assert leading.asked[2] == following.asked[2] == (2, 8)
    assert leading.asked[4:] == following.asked[4:] == [(5, 8), ("mtp", (1, 8))]
    same_step(following.asked[1], torch.arange(5))
    same_step(following.asked[3], torch.arange(5, 10))


def same_step(told_of: tuple[Tensor, Step], expected: Tensor) -> None:
    ids, step = told_of
    assert torch.equal(ids, expected)
    for field in fields(Step):
        told, meant = getattr(step, field.name), getattr(STEP, field.name)
        if isinstance(meant, Tensor):
            assert told.dtype == meant.dtype and torch.equal(told, meant), field.name
        else:
            assert told == meant, field.name


def test_the_others_end_with_rank_0() -> None:
    ours, theirs = Pipe()
    thread = threading.Thread(target=follow, args=(Recorder(), theirs), daemon=True)
    thread.start()
    ours.close()
    thread.join(30)
    assert not thread.is_alive()


def test_a_step_that_fails_ends_all_ranks() -> None:
    """They would not agree on the next one: some are in the middle of this."""
    ours, _theirs = Pipe()
    leader = Leader(Recorder(), [ours], fail)  # type: ignore[arg-type]  # a stand-in for the model
    with pytest.raises(Ended, match="no room"):
        leader.forward(torch.arange(0), STEP, [])
