"""The scheduler under any order of submit, step, finish and cancel, with tiny pools."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from glm_portable.engine.kv_cache import PagePool
from glm_portable.engine.scheduler import Chunk, Scheduler, Sequence
from glm_portable.errors import UsageError


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine: computes what it is told, appends a token where the chunk samples.

    Prompts are of two tokens, so that many begin alike, and of two salts and priorities.
    """

    @initialize(
        num_pages=st.integers(1, 8),
        page_size=st.integers(1, 4),
        max_num_seqs=st.integers(1, 4),
        max_num_batched_tokens=st.integers(1, 9),
        prefix_caching=st.booleans(),
        num_drafts=st.integers(0, 3),
        unit=st.sampled_from([0, 0, 1, 2]),
        by_priority=st.booleans(),
    )
    def start(self, num_pages: int, page_size: int, **settings: Any) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.max_num_seqs = settings["max_num_seqs"]
        settings["unit"] *= page_size
        self.budget = settings["max_num_batched_tokens"]
        self.by_priority, self.num_drafts = settings["by_priority"], settings["num_drafts"]
        self.scheduler = Scheduler(PagePool(num_pages, page_size), **settings)
        self.arrived: list[Sequence] = []
        self.number = 0
        # What was last written to the slots of a page: the salt and all tokens up to there. The
        # second is the MTP layer's, which depends on the token behind, too.
        self.written: dict[tuple[int, int], tuple[str, list[int]]] = {}
        self.drafted: dict[tuple[int, int], tuple[str, list[int]]] = {}

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        answer=st.integers(1, 12),
        salt=st.sampled_from(["", "other"]),
        priority=st.integers(-1, 1),
        skips=st.integers(0, 9),
    )
    def submit(self, prompt: list[int], answer: int, salt: str, priority: int, skips: int) -> None:
        length, name = len(prompt) + answer, str(self.number)
        sequence = Sequence(name, list(prompt), length, priority, salt, skips > 0)
        self.number += 1
        room = self.num_pages * self.page_size
        if length - 1 > room:
            with pytest.raises(UsageError, match=f"{length} tokens.* holds {room};"):
                self.scheduler.submit(sequence)
        else:
            self.scheduler.submit(sequence)
            self.arrived.append(sequence)
            self.arrived.sort(key=lambda s: (s.priority * self.by_priority, int(s.request_id)))

    @precondition(lambda self: self.arrived)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        """Also an early end: the engine removes a sequence that generated EOS the same way."""
        self.end(data.draw(st.sampled_from(self.arrived)))
        self.check_pages()

    @rule()
    def forget(self) -> None:
        self.scheduler.pool.forget()
        self.check_pages()

    @precondition(lambda self: self.scheduler.running)
    @rule()
    def fail(self) -> None:
        """A step that fails ends its sequences; nothing it may have written is ever found."""
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            self.write(chunk, "failed")
        self.scheduler.complete(chunks)  # as when drafting has failed
        for chunk in chunks:
            self.end(chunk.sequence)
        self.check_pages()

    @rule()
    def step(self) -> None:
        before = [(s, s.generates) for s in self.scheduler.running]
        chunks = self.scheduler.schedule()
        self.check_step(chunks)
        self.check_fairness(before, chunks)
        self.check_order()
        self.check_pages()
        for chunk in chunks:
            self.check_cached(chunk.sequence)
        for chunk in chunks:
            self.write(chunk, chunk.sequence.salt)
        starts = [chunk.sequence.num_computed for chunk in chunks]
        sampling = [chunk for chunk in chunks if chunk.samples]
        self.scheduler.complete(chunks)
        for chunk in sampling:
            sequence = chunk.sequence
            right = len(sequence.token_ids) % (len(chunk.drafts) + 1)
            sequence.token_ids += [*chunk.drafts[:right], 0]
            self.scheduler.accept(sequence, right)
        for chunk, start in zip(chunks, starts, strict=True):
            self.draft(chunk.sequence, start)
        self.scheduler.publish(chunks)
        for chunk in sampling:
            assert len(chunk.sequence.token_ids) <= chunk.sequence.max_length
            if len(chunk.sequence.token_ids) == chunk.sequence.max_length:
                self.end(chunk.sequence)
        self.check_pages()

    def draft(self, sequence: Sequence, start: int) -> None:
        """What the MTP layer does: it follows the model, and then draws up the next drafts."""
        if not self.num_drafts:
            return
        end = min(sequence.num_computed, len(sequence.token_ids) - 1)
        for position in range(start, end):
            known = sequence.token_ids[: position + 2]
            self.drafted[self.own_slot(sequence, position)] = (sequence.salt, known)
        for position in range(end, min(end + self.num_drafts - 1, sequence.max_length - 1)):
            if position < len(sequence.block_table) * self.page_size:
                self.drafted[self.own_slot(sequence, position)] = ("a guess", [])
        sequence.drafts = [1] * min(
            self.num_drafts, sequence.max_length - len(sequence.token_ids) - 1
        )

    def own_slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        """Where to write: only into pages of one's own that nobody can find."""
        page, pool = sequence.block_table[position // self.page_size], self.scheduler.pool
        assert page not in pool._digest_of, "a page that can be found was written to"
        assert pool._holders[page] == 1, "a shared page was written to"
        return page, position % self.page_size

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.arrived.remove(sequence)

    def write(self, chunk: Chunk, salt: str) -> None:
        """What a model does: every slot of the chunk."""
        sequence = chunk.sequence
        tokens = [*sequence.token_ids, *chunk.drafts]
        for position in range(sequence.num_computed, sequence.num_computed + chunk.width):
            self.written[self.own_slot(sequence, position)] = (salt, tokens[: position + 1])

    def check_cached(self, sequence: Sequence) -> None:
        """All that counts as computed is there, of this sequence's tokens and salt."""
        for position in range(sequence.num_computed):
            page = sequence.block_table[position // self.page_size]
            slot, salt = (page, position % self.page_size), sequence.salt
            assert self.written[slot] == (salt, sequence.token_ids[: position + 1])
            if self.num_drafts:
                assert self.drafted[slot] == (salt, sequence.token_ids[: position + 2])
        assert sequence.num_uncomputed > 0, "the last token is computed to sample by"
        if not sequence.skips_cached:
            assert sequence.num_cached == 0

    def check_step(self, chunks: list[Chunk]) -> None:
        assert sum(chunk.width for chunk in chunks) <= self.budget
        assert len(self.scheduler.running) <= self.max_num_seqs
        assert all(0 < chunk.count <= chunk.sequence.num_uncomputed for chunk in chunks)
        if self.arrived and self.arrived[0] in self.scheduler.running:
            assert chunks[0].sequence is self.arrived[0], "the first moves on in every step"
        if self.arrived and not self.by_priority:
            assert self.arrived[0] in self.scheduler.running
        assert bool(chunks) == bool(self.arrived)
        for chunk in chunks:
            end = chunk.sequence.num_computed + chunk.width
            assert len(chunk.sequence.block_table) * self.page_size >= end

    def check_fairness(self, before: list[tuple[Sequence, bool]], chunks: list[Chunk]) -> None:
        """With a token for each sequence: all that generate move on, and the first that reads."""
        if self.budget < self.max_num_seqs:
            return
        moved = [chunk.sequence for chunk in chunks]
        running = self.scheduler.running
        reading = [s for s in running if not s.generates]
        assert all(s in moved for s, generates in before if generates and s in running)
        assert not reading or reading[0] in moved

    def check_order(self) -> None:
        """None waits before one that runs, except for a place or for the pages of its equals."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert sorted(running, key=self.arrived.index) == running
        assert sorted(waiting, key=self.arrived.index) == waiting
        assert {*running, *waiting} == {*self.arrived}
        if running and waiting and self.arrived.index(waiting[0]) < self.arrived.index(running[-1]):
            assert self.by_priority and waiting[0].priority < running[-1].priority

    def check_pages(self) -> None:
        pool = self.scheduler.pool
        held = Counter(page for sequence in self.arrived for page in sequence.block_table)
        assert [held[page] for page in range(self.num_pages)] == pool._holders
        assert len(held) == pool.num_used
        blank, kept = set(pool._blank), set(pool._kept)
        assert len(blank) + len(kept) == len(pool._blank) + len(pool._kept) == pool.num_free
        assert not blank & kept and not (blank | kept) & set(held)
        assert kept <= set(pool._digest_of) and not blank & set(pool._digest_of)
        assert {d: p for p, d in pool._digest_of.items()} == pool._page_of
        shared = {page for page, count in held.items() if count > 1}
        if not self.scheduler.prefix_caching:
            assert not shared and not kept
        for sequence in self.arrived:
            assert len(sequence.block_table) * self.page_size >= sequence.num_computed
            full = sequence.block_table[: sequence.num_computed // self.page_size]
            assert not shared & set(sequence.block_table[len(full) :])

    def teardown(self) -> None:
        """Whatever happened, all that is left finishes, and all pages come back."""
        if not hasattr(self, "scheduler"):
            return
        # A step computes a token of the first, and nothing the first computed is lost; one that
        # waits for a place in spite of its priority waits for no more tokens than there are.
        for _ in range(sum(sequence.max_length for sequence in self.arrived)):
            if self.arrived:
                self.step()
        assert not self.arrived and not self.scheduler.running and not self.scheduler.waiting
        assert self.scheduler.pool.num_used == 0 and not any(self.scheduler.pool._holders)
        self.scheduler.pool.forget()
        assert sorted(self.scheduler.pool._blank) == list(range(self.num_pages))


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def run(scheduler: Scheduler) -> list[tuple[str, int]]:
    """One step, as (request, tokens computed)."""
    chunks = scheduler.schedule()
    sampling = [chunk.sequence for chunk in chunks if chunk.samples]
    scheduler.complete(chunks)
    scheduler.publish(chunks)
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
    assert (b.num_computed, list(b.block_table), scheduler.preemptions) == (0, [], 1)
    assert run(scheduler) == [("a", 1)]
    scheduler.remove(a)
    assert run(scheduler) == [("b", 5)]  # its prompt and the two tokens it had generated


def test_none_is_admitted_only_to_be_preempted_at_once() -> None:
    scheduler = Scheduler(PagePool(4, 2), max_num_seqs=4, max_num_batched_tokens=100)
    scheduler.submit(Sequence("a", [0] * 4, 8))
    scheduler.submit(Sequence("b", [0] * 4, 8))
    assert run(scheduler) == [("a", 4)]
    assert scheduler.preemptions == 0


def caching(num_pages: int, page_size: int = 2, **settings: Any) -> Scheduler:
    pool = PagePool(num_pages, page_size)
    usual = {"max_num_seqs": 4, "max_num_batched_tokens": 100, "prefix_caching": True}
    return Scheduler(pool, **(usual | settings))


def test_a_prompt_begins_with_the_full_pages_of_one_before_it() -> None:
    scheduler = caching(20)
    first = Sequence("a", [1, 2, 3, 4, 5], 9)
    scheduler.submit(first)
    assert run(scheduler) == [("a", 5)] and first.num_cached == 0
    for name, tokens, computed in [
        ("same", [1, 2, 3, 4, 5], 1),
        ("even", [1, 2, 3, 4], 2),  # the last token is computed, so its page is its own
        ("other end", [1, 2, 3, 9, 9, 9], 4),
        ("other start", [9, 2, 3, 4, 5], 5),
    ]:
        again = Sequence(name, list(tokens), 9)
        scheduler.submit(again)
        assert run(scheduler)[-1] == (name, computed)
        assert again.num_cached == len(tokens) - computed
        scheduler.remove(again)
    assert scheduler.pool.num_used == 5 and len(first.block_table) == 5
    assert (scheduler.prefix_cache_queries, scheduler.prefix_cache_hits) == (25, 8)


def test_another_salt_finds_nothing() -> None:
    scheduler = caching(20)
    for name, salt, computed in [("a", "x", 5), ("b", "y", 5), ("c", "", 5), ("d", "x", 1)]:
        scheduler.submit(Sequence(name, [1, 2, 3, 4, 5], 9, salt=salt))
        assert run(scheduler)[-1] == (name, computed)


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    scheduler = caching(20)
    first = Sequence("a", [1, 2, 3], 20)
    scheduler.submit(first)
    for _ in range(5):
        run(scheduler)
    scheduler.remove(first)
    assert first.token_ids == [1, 2, 3, 0, 0, 0, 0, 0] and scheduler.pool.num_used == 0
    scheduler.submit(Sequence("b", [*first.token_ids, 7], 20))
    # Of the 8 tokens the last was sampled and not computed: its page is not full.
    assert run(scheduler) == [("b", 3)]


def test_pages_are_found_only_after_the_step_that_fills_them() -> None:
    scheduler = caching(20, max_num_batched_tokens=10)
    scheduler.submit(Sequence("a", [1, 2, 3, 4, 5], 9))
    scheduler.submit(Sequence("b", [1, 2, 3, 4, 5], 9))
    assert run(scheduler) == [("a", 5), ("b", 5)]
    scheduler = caching(20)
    failing = Sequence("a", [1, 2, 3, 4, 5], 9)
    scheduler.submit(failing)
    scheduler.schedule()
    scheduler.remove(failing)  # what the engine does after a step that failed
    scheduler.submit(Sequence("b", [1, 2, 3, 4, 5], 9))
    assert run(scheduler) == [("b", 5)]


def test_the_page_unused_for_longest_is_used_up_first() -> None:
    scheduler = caching(4, page_size=1)
    for name in ("a", "b"):
        sequence = Sequence(name, [ord(name), 1], 3)
        scheduler.submit(sequence)
        run(scheduler)
        scheduler.remove(sequence)
    scheduler.submit(Sequence("a", [ord("a"), 1], 3))  # touches the first page of a
    assert run(scheduler) == [("a", 1)]
    scheduler.remove(scheduler.running[0])
    scheduler.submit(Sequence("c", [8, 9, 8], 4))
    assert run(scheduler) == [("c", 3)]  # takes both of b, and the second of a
    scheduler.remove(scheduler.running[0])
    scheduler.submit(Sequence("a", [ord("a"), 1], 3))
    assert run(scheduler) == [("a", 1)]


def test_with_drafts_a_page_is_found_only_with_the_token_behind_it() -> None:
    """The MTP layer's entry at its last position was made from that token."""
    scheduler = caching(20, num_drafts=1)
    prompts = {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 6], "c": [1, 2, 3, 4, 5, 7]}
    for (name, prompt), computed in zip(prompts.items(), (5, 3, 2), strict=True):
        scheduler.submit(Sequence(name, prompt, 9))
        assert run(scheduler)[-1] == (name, computed)


def test_one_whose_tokens_are_all_looked_at_skips_none() -> None:
    scheduler = caching(20)
    scheduler.submit(Sequence("a", [1, 2, 3, 4, 5], 9))
    run(scheduler)
    scheduler.submit(Sequence("b", [1, 2, 3, 4, 5], 9, skips_cached=False))
    assert run(scheduler) == [("a", 1), ("b", 5)]
    assert scheduler.prefix_cache_queries == 5


def test_a_preempted_sequence_finds_its_pages_again() -> None:
    scheduler = caching(5)
    a, b = (Sequence(name, [ord(name)] * 3, 9) for name in "ab")
    scheduler.submit(a)
    scheduler.submit(b)
    assert run(scheduler) == [("a", 3), ("b", 3)]
    assert run(scheduler) == [("a", 1), ("b", 1)]
    assert run(scheduler) == [("a", 1)] and scheduler.preemptions == 1
    scheduler.remove(a)
    assert run(scheduler) == [("b", 1)]  # 4 of its 5 tokens were in full pages
    assert b.num_cached == 0, "what it found when it first ran"


def priorities(num_pages: int, **settings: Any) -> Scheduler:
    return caching(num_pages, by_priority=True, prefix_caching=False, **settings)


def test_units_make_the_steps_the_same_with_a_warm_cache_and_a_cold_one() -> None:
    scheduler = caching(50, unit=6)
    steps: list[list[int]] = []
    for name in ("cold", "warm"):
        scheduler.submit(Sequence(name, [*range(17)], 20))
        steps.append([run(scheduler)[0][1] for _ in range(2 if steps else 4)])
        scheduler.remove(scheduler.running[0])
    assert steps == [[6, 6, 5, 1], [5, 1]]


def test_of_those_who_wait_the_lowest_number_is_first() -> None:
    scheduler = priorities(20, max_num_seqs=1)
    for name, priority in [("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 5)]:
        scheduler.submit(Sequence(name, [1], 2, priority))
    for name in "dacbe":
        assert run(scheduler) == [(name, 1)]
        scheduler.remove(scheduler.running[0])


def test_without_the_policy_priorities_do_not_count() -> None:
    scheduler = caching(20, max_num_seqs=1)
    scheduler.submit(Sequence("a", [1], 2, 5))
    scheduler.submit(Sequence("b", [1], 2, -5))
    assert run(scheduler) == [("a", 1)]


def test_a_higher_priority_preempts_the_lowest_and_only_for_pages() -> None:
    scheduler = priorities(7)
    for name, priority in [("a", 1), ("b", 2)]:
        scheduler.submit(Sequence(name, [1] * 3, 9, priority))
    assert run(scheduler) == [("a", 3), ("b", 3)]
    scheduler.submit(Sequence("fits", [1], 2, 0))
    assert run(scheduler) == [("fits", 1), ("a", 1), ("b", 1)]
    assert scheduler.preemptions == 0
    scheduler.submit(Sequence("equal", [1] * 6, 9, 2))
    assert run(scheduler) == [("fits", 1), ("a", 1), ("b", 1)] and scheduler.preemptions == 0


def test_pages_are_taken_for_a_higher_priority_as_far_as_needed() -> None:
    scheduler = priorities(7)
    for name, priority in [("a", 1), ("b", 2)]:
        scheduler.submit(Sequence(name, [1] * 3, 9, priority))
    run(scheduler)
    scheduler.submit(Sequence("urgent", [1] * 7, 9, 0))
    assert run(scheduler) == [("urgent", 7), ("a", 1)]
    assert scheduler.preemptions == 1 and scheduler.waiting[0].request_id == "b"


def test_none_is_preempted_in_vain() -> None:
    """Even without b there would be too few pages, which a holds."""
    scheduler = priorities(7)
    for name, priority in [("a", 0), ("b", 2)]:
        scheduler.submit(Sequence(name, [1] * 5, 9, priority))
    run(scheduler)
    scheduler.submit(Sequence("urgent", [1] * 9, 12, 1))
    assert run(scheduler) == [("a", 1), ("b", 1)] and scheduler.preemptions == 0


def test_a_place_is_not_taken_away() -> None:
    scheduler = priorities(50, max_num_seqs=1)
    scheduler.submit(Sequence("a", [1], 9, 1))
    run(scheduler)
    scheduler.submit(Sequence("urgent", [1], 9, 0))
    assert run(scheduler) == [("a", 1)]


def test_a_long_prompt_leaves_a_token_to_those_that_generate() -> None:
    """Also to later ones, and though it is of a higher priority."""
    scheduler = priorities(50, max_num_batched_tokens=8)
    for name in "ab":
        scheduler.submit(Sequence(name, [1], 20, 1))
    run(scheduler)
    scheduler.submit(Sequence("long", [1] * 17, 20, 0))
    for _ in range(2):
        assert run(scheduler) == [("long", 6), ("a", 1), ("b", 1)]
    assert run(scheduler) == [("long", 5), ("a", 1), ("b", 1)]


def test_without_chunks_a_prompt_is_read_in_one_step() -> None:
    scheduler = caching(50, max_num_batched_tokens=8, chunked_prefill=False)
    for name, length in [("a", 6), ("b", 7), ("c", 1)]:
        scheduler.submit(Sequence(name, [ord(name)] * length, 20))
    assert run(scheduler) == [("a", 6)]
    assert run(scheduler) == [("a", 1), ("b", 7)]
    assert run(scheduler) == [("a", 1), ("b", 1), ("c", 1)]


def test_an_urgent_prompt_is_read_in_one_step_too() -> None:
    scheduler = priorities(50, max_num_batched_tokens=8, chunked_prefill=False)
    for name in "ab":
        scheduler.submit(Sequence(name, [1], 20, 1))
    run(scheduler)
    scheduler.submit(Sequence("urgent", [1] * 6, 20, 0))
    scheduler.submit(Sequence("later", [1] * 7, 20, 0))
    assert run(scheduler) == [("urgent", 6), ("a", 1), ("b", 1)]
    assert run(scheduler) == [("urgent", 1), ("a", 1), ("b", 1)]
