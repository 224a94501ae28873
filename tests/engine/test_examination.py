"""Examinations of weights: part by part between steps, against the first time, and always ended."""

import queue
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.digest import Digests
from glm_portable.engine.engine import Engine, EngineDraining
from glm_portable.engine.examination import Examiner
from glm_portable.engine.ranks import END, Leader, follow
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.ops import KVCache, Step
from tests.engine.fake_model import FakeModel, Words, limits
from tests.engine.test_ranks import fail
from tests.random_checkpoint import small_config, write_checkpoint
from tests.test_digest import model_of

WAIT_S = 60.0
PARTS = 6


class Weighed(FakeModel):
    """Notes in which order steps and parts of examinations come. faulty: the part that differs."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.faulty: int | None = None
        self.broken = False

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        self.events.append("step")
        return super().forward(ids_T, step, caches)

    def digests(self, part: int) -> Digests:
        self.events.append(f"part {part}")
        if self.broken:
            raise MemoryError("no room")
        if part == PARTS:
            return {}
        return {f"w{part}": [1, 2], f"x{part}": [3, 4 + (part == self.faulty)]}


def examine(engine: Engine) -> str | None:
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    engine.examine(found.put)
    return found.get(timeout=WAIT_S)


def test_the_first_difference_is_named() -> None:
    model = Weighed()
    with Engine(model, Words(), limits()) as engine:
        assert examine(engine) is None
        every = [f"part {part}" for part in range(PARTS + 1)]
        assert model.events == every
        assert examine(engine) is None
        assert model.events == every * 2
        model.faulty = 2
        assert examine(engine) == "expert 1 of x2 has changed since the start"
        assert model.events == every * 2 + every[:3]
        model.faulty = None
        assert examine(engine) is None, "it goes on from the beginning, and with what was first"


def test_a_step_lies_between_two_parts() -> None:
    """Of a request that runs; an idle engine goes through the parts without waiting."""
    model = Weighed()
    ended = threading.Event()
    results: list[str | None] = []
    with Engine(model, Words(), limits()) as engine:
        endless = SamplingParams(temperature=0, ignore_eos=True, max_tokens=40)

        def on_delta(delta: Delta) -> None:
            if not results and "part 0" not in model.events:
                engine.examine(results.append)
            if delta.finish_reason is not None:
                ended.set()

        engine.submit([1, 2], endless, on_delta)
        assert ended.wait(WAIT_S)
    assert len(results) == len([e for e in model.events if e == f"part {PARTS}"]) > 0
    assert set(results) == {None}
    first = model.events.index("part 0")
    between = model.events[first : model.events.index(f"part {PARTS}") + 1]
    assert between == [e for p in range(PARTS + 1) for e in (f"part {p}", "step")][:-1]


def test_an_examination_that_fails_ends_no_request() -> None:
    model = Weighed()
    model.broken = True
    with Engine(model, Words(), limits()) as engine:
        fault = examine(engine)
        assert fault is not None and "could not be examined" in fault
        [answer] = engine.generate([([1, 2], SamplingParams(temperature=0, max_tokens=3))])
        assert answer.token_ids
        model.broken = False
        assert examine(engine) is None


def test_a_closed_engine_leaves_nobody_waiting() -> None:
    engine = Engine(Weighed(), Words(), limits())
    found: list[str | None] = []
    engine.examine(found.append)
    engine.close()
    assert found == ["the engine has ended"]
    with pytest.raises(EngineDraining):
        engine.examine(found.append)


def test_every_rank_examines_its_own_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config(vocab_size=256))
    place: dict[str, Any] = {"backend": ops.load("reference"), "dtype": torch.float32, "size": 2}
    models = [model_of(tmp_path, rank=rank, **place) for rank in (0, 1)]
    ours, theirs = Pipe()
    thread = threading.Thread(target=follow, args=(models[1], theirs), daemon=True)
    thread.start()
    examiner = Examiner(Leader(models[0], [ours], fail))
    results: list[str | None] = []

    def found() -> str | None:
        examiner.add(results.append)
        while examiner.busy:
            examiner.advance()
        return results.pop()

    assert found() is found() is None
    moe = models[1].layers[2].moe
    assert moe is not None
    with torch.inference_mode():
        moe.down.data[5].zero_()
    fault = "expert 5 of layers[2].moe.down.data on rank 1 has changed since the start"
    assert found() == fault
    ours.send((END,))
    thread.join(WAIT_S)
    assert not thread.is_alive()
