"""Which sequences compute how many tokens in the next step; torch-free.

Continuous batching (Orca, Yu et al. 2022): a step mixes sequences that read their prompt, in
chunks, with sequences that generate one token each. There is no difference between the two: every
sequence has known tokens (prompt and generated) of which some are computed, and a step computes
the next few. One that has computed them all samples a new token.

First come, first served. At any time all running sequences arrived before all waiting ones, and
only a younger sequence is ever preempted for an older one, so the oldest always moves on and
every sequence is the oldest at some time.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from glm_portable.engine.kv_cache import PagePool
from glm_portable.errors import UsageError


@dataclass(eq=False)
class Sequence:
    """Tokens that grow, and the part of them whose keys and values are cached.

    request_id: whose tokens they are, for the caller; the scheduler compares objects.
    token_ids: prompt and generated tokens. max_length: the most tokens it will ever have.
    num_computed: how many of token_ids are in the cache, in the pages of block_table. drafts: a
    guess at the tokens after token_ids, which a step may compute with them and so find right.
    """

    request_id: str
    token_ids: list[int]
    max_length: int
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed


@dataclass(frozen=True)
class Chunk:
    """The next `count` tokens of a sequence, from its num_computed on, and drafts behind them."""

    sequence: Sequence
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """How many tokens it computes."""
        return self.count + len(self.drafts)

    @property
    def token_ids(self) -> list[int]:
        start = self.sequence.num_computed
        return [*self.sequence.token_ids[start : start + self.count], *self.drafts]

    @property
    def samples(self) -> bool:
        """Whether the chunk computes the last known token, so that a new one follows from it."""
        return self.count == self.sequence.num_uncomputed


class Scheduler:
    """Two queues over one page pool; both are in order of arrival.

    num_drafts: the most drafts a sequence can have. They get what budget and pages the tokens leave
    over, and their pages for one step: nobody waits or is preempted for them.
    """

    def __init__(
        self, pool: PagePool, max_num_seqs: int, max_num_batched_tokens: int, num_drafts: int = 0
    ) -> None:
        self.pool, self.num_drafts = pool, num_drafts
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def check(self, max_length: int) -> None:
        """Raise UsageError if a sequence of that length could not run even alone."""
        # The last token is sampled and never computed, so it needs no room.
        need, have = max_length - 1, self.pool.num_pages * self.pool.page_size
        if self.pool.pages_for(need) > self.pool.num_pages:
            raise UsageError(
                f"the request may grow to {max_length} tokens, but the KV cache holds {have}; "
                "lower max_tokens or give the cache more pages."
            )

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises UsageError if it could not run even alone."""
        self.check(sequence.max_length)
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step, at least one token if there is any sequence; its pages are allocated."""
        if self.num_drafts:
            for sequence in self.running:
                self.pool.shrink(sequence.block_table, len(sequence.token_ids))
        chunks = self._continue_running()
        self._admit(chunks)
        return self._with_drafts(chunks) if self.num_drafts else chunks

    def complete(self, chunks: Iterable[Chunk]) -> None:
        """Note that a step has computed the chunks' known tokens."""
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.count

    def accept(self, sequence: Sequence, count: int) -> None:
        """Note that it computed that many drafts which now are among token_ids."""
        sequence.num_computed += count

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence and free its pages."""
        queue = self.running if sequence in self.running else self.waiting
        queue.remove(sequence)
        self.pool.release(sequence.block_table)

    def _continue_running(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        budget = self.max_num_batched_tokens
        # By index, because making room for one sequence shortens the list at its other end.
        while budget > 0 and len(chunks) < len(self.running):
            sequence = self.running[len(chunks)]
            count = min(sequence.num_uncomputed, budget)
            if not self._make_room(sequence, sequence.num_computed + count):
                break
            chunks.append(Chunk(sequence, count))
            budget -= count
        return chunks

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Grow its block table, preempting from the youngest on; False if it came to itself."""
        while not self.pool.grow(sequence.block_table, tokens):
            youngest = self.running.pop()
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the front of the queue; its known tokens are computed again when it resumes."""
        self.pool.release(sequence.block_table)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self, chunks: list[Chunk]) -> None:
        budget = self.max_num_batched_tokens - sum(chunk.count for chunk in chunks)
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self._fits(sequence):
                return
            # All known tokens get their pages now, so reading a prompt is never cut off half-way.
            self.pool.grow(sequence.block_table, len(sequence.token_ids))
            self.running.append(self.waiting.popleft())
            chunks.append(Chunk(sequence, min(sequence.num_uncomputed, budget)))
            budget -= chunks[-1].count

    def _fits(self, sequence: Sequence) -> bool:
        """Keep a page for each running sequence: one admitted too early is preempted at once."""
        need = self.pool.missing(sequence.block_table, len(sequence.token_ids))
        return need + len(self.running) <= self.pool.num_free

    def _with_drafts(self, chunks: list[Chunk]) -> list[Chunk]:
        """Add to the chunks that sample what drafts fit, and pages for drafting the next ones."""
        budget = self.max_num_batched_tokens - sum(chunk.count for chunk in chunks)
        drafting = []
        for chunk in chunks:
            sequence = chunk.sequence
            if chunk.samples:
                known = len(sequence.token_ids)
                room = min(self.pool.room(sequence.block_table), sequence.max_length - 1)
                drafts = tuple(sequence.drafts[: min(budget, room - known)])
                # The next ones are drafted behind these, each but the first in a slot of its own.
                last = known + len(drafts) + self.num_drafts - 1
                self.pool.grow(sequence.block_table, min(last, room))
                budget -= len(drafts)
                chunk = Chunk(sequence, chunk.count, drafts)
            drafting.append(chunk)
        return drafting
