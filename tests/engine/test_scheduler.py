"""The scheduler under any order of submit, step, finish and cancel, with tiny pools."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from glm_portable.engine.kv_cache import PagePool
from glm_portable.engine.scheduler import Chunk, Scheduler, Sequence
from glm_portable.errors import UsageError


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine: computes what it is told, appends a token where the chunk samples."""

    @initialize(
        num_pages=st.integers(1, 8),
        page_size=st.integers(1, 4),
        max_num_seqs=st.integers(1, 4),
        max_num_batched_tokens=st.integers(1, 9),
    )
    def start(self, **limits: int) -> None:
        self.limits = limits
        pool = PagePool(limits["num_pages"], limits["page_size"])
        self.scheduler = Scheduler(pool, limits["max_num_seqs"], limits["max_num_batched_tokens"])
        self.arrived: list[Sequence] = []
        self.number = 0

    @rule(prompt=st.integers(1, 12), answer=st.integers(1, 12))
    def submit(self, prompt: int, answer: int) -> None:
        sequence = Sequence(str(self.number), list(range(prompt)), prompt + answer)
        self.number += 1
        room = self.limits["num_pages"] * self.limits["page_size"]
        if prompt + answer - 1 > room:
            with pytest.raises(UsageError, match=f"{prompt + answer} tokens.* holds {room};"):
                self.scheduler.submit(sequence)
        else:
            self.scheduler.submit(sequence)
            self.arrived.append(sequence)

    @precondition(lambda self: self.arrived)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        """Also an early end: the engine removes a sequence that generated EOS the same way."""
        sequence = data.draw(st.sampled_from(self.arrived))
        self.scheduler.remove(sequence)
        self.arrived.remove(sequence)
        self.check_pages()

    @rule()
    def step(self) -> None:
        chunks = self.scheduler.schedule()
        self.check_step(chunks)
        self.check_order()
        self.check_pages()
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        self.scheduler.complete(chunks)
        for sequence in sampling:
            sequence.token_ids.append(0)
            if len(sequence.token_ids) == sequence.max_length:
                self.scheduler.remove(sequence)
                self.arrived.remove(sequence)
        self.check_pages()

    def check_step(self, chunks: list[Chunk]) -> None:
        assert sum(chunk.count for chunk in chunks) <= self.limits["max_num_batched_tokens"]
        assert len(self.scheduler.running) <= self.limits["max_num_seqs"]
        assert all(chunk.count == len(chunk.token_ids) > 0 for chunk in chunks)
        if self.arrived:
            assert chunks[0].sequence is self.arrived[0], "the oldest moves on in every step"
        for chunk in chunks:
            end = chunk.sequence.num_computed + chunk.count
            assert len(chunk.sequence.block_table) * self.limits["page_size"] >= end

    def check_order(self) -> None:
        """No younger sequence runs while an older one waits."""
        queues = [*self.scheduler.running, *self.scheduler.waiting]
        assert [s.request_id for s in queues] == [s.request_id for s in self.arrived]

    def check_pages(self) -> None:
        held = [page for sequence in self.arrived for page in sequence.block_table]
        assert len(held) == len(set(held)) == self.scheduler.pool.num_used
        for sequence in self.arrived:
            assert len(sequence.block_table) * self.limits["page_size"] >= sequence.num_computed

    def teardown(self) -> None:
        """Whatever happened, all that is left finishes, and all pages come back."""
        if not hasattr(self, "scheduler"):
            return
        # Each step computes a token of the oldest, and nothing the oldest computed is lost.
        for _ in range(sum(sequence.max_length for sequence in self.arrived)):
            if self.arrived:
                self.step()
        assert not self.arrived and not self.scheduler.running and not self.scheduler.waiting
        assert self.scheduler.pool.num_used == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def run(scheduler: Scheduler) -> list[tuple[str, int]]:
    """One step, as (request, tokens computed)."""
    chunks = scheduler.schedule()
    sampling = [chunk.sequence for chunk in chunks if chunk.samples]
    scheduler.complete(chunks)
    for sequence in sampling:
        sequence.token_ids.append(0)
    return [(chunk.sequence.request_id, chunk.count) for chunk in chunks]


def test_chunks_of_a_prompt_share_steps_with_generation() -> None:
    scheduler = Scheduler(PagePool(100, 4), max_num_seqs=4, max_num_batched_tokens=6)
    scheduler.submit(Sequence("a", [0] * 3, 50))
    scheduler.submit(Sequence("b", [0] * 10, 50))
    scheduler.submit(Sequence("c", [0] * 2, 50))
    assert run(scheduler) == [("a", 3), ("b", 3)]
    assert run(scheduler) == [("a", 1), ("b", 5)]
    assert run(scheduler) == [("a", 1), ("b", 2), ("c", 2)]
    assert run(scheduler) == [("a", 1), ("b", 1), ("c", 1)]


def test_the_youngest_is_preempted_and_resumes_before_those_who_wait() -> None:
    scheduler = Scheduler(PagePool(5, 2), max_num_seqs=2, max_num_batched_tokens=100)
    a, b, c = (Sequence(name, [0] * 3, 9) for name in "abc")
    for sequence in (a, b, c):
        scheduler.submit(sequence)
    assert run(scheduler) == [("a", 3), ("b", 3)]
    assert run(scheduler) == [("a", 1), ("b", 1)]  # 4 tokens each, in 2 pages each
    assert run(scheduler) == [("a", 1)]  # the fifth needs a third page: none is left for b
    assert [s.request_id for s in scheduler.waiting] == ["b", "c"]
    assert (b.num_computed, b.block_table, scheduler.preemptions) == (0, [], 1)
    assert run(scheduler) == [("a", 1)]
    scheduler.remove(a)
    assert run(scheduler) == [("b", 5)]  # its prompt and the two tokens it had generated


def test_none_is_admitted_only_to_be_preempted_at_once() -> None:
    scheduler = Scheduler(PagePool(4, 2), max_num_seqs=4, max_num_batched_tokens=100)
    scheduler.submit(Sequence("a", [0] * 4, 8))
    scheduler.submit(Sequence("b", [0] * 4, 8))
    assert run(scheduler) == [("a", 4)]
    assert scheduler.preemptions == 0
