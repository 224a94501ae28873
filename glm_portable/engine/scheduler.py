"""Which sequences compute how many tokens in the next step; torch-free.

Continuous batching (Orca, Yu et al. 2022): a step mixes sequences that read their prompt, in
chunks, with sequences that generate one token each. There is no difference between the two: every
sequence has known tokens (prompt and generated) of which some are computed, and a step computes
the next few. One that has computed them all samples a new token.

What a step holds: sequences take their turn in order, and one that reads leaves a token of the
step for each behind it that generates. So with at least as many tokens as sequences in a step, none
that generates ever misses one, and of those that read the first always moves on.

In order means by arrival or, where the policy is priority, by priority and then by arrival. Pages
are taken away from the last in order alone and given to an earlier one. A sequence waits before one
that runs only if it is of a higher priority, and then only for a place or until it has been given
the pages of those of lower priority. So the first of all sequences always moves on, or waits for
places of running ones, of which the first moves on; and every sequence becomes the first at some
time, unless others of a higher priority never cease to come.
"""

from array import array
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import Struct

from glm_portable.engine.admission import check_room
from glm_portable.engine.kv_cache import Digest, PagePool, page_digest, salt_digest


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens that grow, and the part of them whose keys and values are cached.

    request_id: whose tokens they are, for the caller; the scheduler compares objects.
    token_ids: prompt and generated tokens. max_length: the most tokens it will ever have.
    priority: the lower the earlier. salt: it shares pages with sequences of the same salt alone.
    skips_cached: whether it may begin with others' pages; not one whose every token is looked at.
    num_computed: how many of token_ids are in the cache, in the pages of block_table. drafts: a
    guess at the tokens after token_ids, which a step may compute with them and so find right.
    num_cached: how many of them were found there when it first ran, None before that.
    block_table: an array, which numpy copies at once and not number by number, in every step.
    digests: of its first pages, as far as they were needed. num_published: pages to be found.
    """

    request_id: str
    token_ids: list[int]
    max_length: int
    priority: int = 0
    salt: str = ""
    skips_cached: bool = True
    num_computed: int = 0
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    drafts: list[int] = field(default_factory=list)
    num_cached: int | None = None
    digests: list[Digest] = field(default_factory=list)
    num_published: int = 0
    order: tuple[int, int] = (0, 0)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def generates(self) -> bool:
        """Whether one token more is all there is to compute."""
        return self.num_uncomputed == 1

    def page_digests(self, count: int, page_size: int, ahead: int = 0) -> list[Digest]:
        """Of its first `count` pages, which must be full, with `ahead` known tokens behind each."""
        for page in range(len(self.digests), count):
            before = self.digests[-1] if self.digests else salt_digest(self.salt)
            tokens = self.token_ids[page * page_size : (page + 1) * page_size + ahead]
            self.digests.append(page_digest(before, tokens))
        return self.digests[:count]


class Chunk(Struct, eq=False, gc=False):
    """The next `count` tokens of a sequence, from its num_computed on, and drafts behind them."""

    sequence: Sequence
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """How many tokens it computes."""
        return self.count + len(self.drafts)

    @property
    def samples(self) -> bool:
        """Whether the chunk computes the last known token, so that a new one follows from it."""
        return self.sequence.num_computed + self.count == len(self.sequence.token_ids)


class Scheduler:
    """Two queues over one page pool; both are in order.

    num_drafts: the most drafts a sequence can have. They get what budget and pages the tokens leave
    over, and their pages for one step: nobody waits or is preempted for them. prefix_caching:
    whether sequences may begin with pages that others have computed. chunked_prefill: whether a
    prompt may be read in several steps. by_priority: whether the priorities of sequences count.
    unit: of tokens, a multiple of the page size: chunks end at multiples of it, and what is found
    counts in whole units, so that a sequence alone is computed in the same steps either way; 0 does
    without.
    """

    def __init__(
        self,
        pool: PagePool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_drafts: int = 0,
        *,
        prefix_caching: bool = False,
        chunked_prefill: bool = True,
        by_priority: bool = False,
        unit: int = 0,
    ) -> None:
        self.pool, self.num_drafts = pool, num_drafts
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.prefix_caching = prefix_caching
        self.chunked_prefill, self.by_priority, self.unit = chunked_prefill, by_priority, unit
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_cache_queries = self.prefix_cache_hits = 0
        self._arrivals = 0

    def check(self, max_length: int) -> None:
        """Raise UsageError if a sequence of that length could not run even alone."""
        check_room(max_length, self.pool.num_pages, self.pool.page_size)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises UsageError if it could not run even alone."""
        self.check(sequence.max_length)
        self._arrivals += 1
        sequence.order = (sequence.priority if self.by_priority else 0, self._arrivals)
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> list[Chunk]:
        """The next step, at least one token if there is any sequence; its pages are allocated."""
        if self.num_drafts:
            for sequence in self.running:
                self.pool.shrink(sequence.block_table, len(sequence.token_ids))
        self._admit_urgent()
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

    def publish(self, chunks: Iterable[Chunk]) -> None:
        """Let others find the pages that a step has filled, when all of it has succeeded."""
        if self.prefix_caching:
            page_size = self.pool.page_size
            for chunk in chunks:
                sequence = chunk.sequence
                if sequence.num_computed >= (sequence.num_published + 1) * page_size:
                    self._publish(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """Let nobody find the pages of a sequence, its own and those it began with."""
        for page in sequence.block_table[: sequence.num_published]:
            self.pool.withdraw(page)

    @property
    def _ahead(self) -> int:
        """How many tokens behind a page what is cached in it depends on, too.

        The MTP layer's entry at a position is made from the token that follows it.
        """
        return 1 if self.num_drafts else 0

    def page_digests(self, sequence: Sequence, count: int) -> list[Digest]:
        """What the first pages of a sequence are found by."""
        return sequence.page_digests(count, self.pool.page_size, self._ahead)

    def _publish(self, sequence: Sequence) -> None:
        known = len(sequence.token_ids) - self._ahead
        full = min(sequence.num_computed, known) // self.pool.page_size
        digests = self.page_digests(sequence, full)
        for page in range(sequence.num_published, full):
            self.pool.publish(sequence.block_table[page], digests[page])
        sequence.num_published = full

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence and free its pages."""
        queue = self.running if sequence in self.running else self.waiting
        queue.remove(sequence)
        self.pool.release(sequence.block_table)

    def _continue_running(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        budget, place, page_size = self.max_num_batched_tokens, 0, self.pool.page_size
        running = self.running
        # By place, because making room for one sequence shortens the list at its other end.
        while budget > 0 and place < len(running):
            sequence = running[place]
            place += 1
            count = len(sequence.token_ids) - sequence.num_computed
            if count > 1:  # it does not generate: it reads
                count = self._count(sequence, budget - self._reserved(place))
                if place == 1:
                    count = max(1, count)  # whatever comes behind the first
                if count < 1:
                    continue
            end = sequence.num_computed + count
            if end > len(sequence.block_table) * page_size and not self._make_room(sequence, end):
                break
            chunks.append(Chunk(sequence, count))
            budget -= count
        return chunks

    def _count(self, sequence: Sequence, budget: int) -> int:
        """How many of its tokens fit into a budget, up to the end of a unit."""
        most = self.unit - sequence.num_computed % self.unit if self.unit else budget
        return min(sequence.num_uncomputed, budget, most)

    def _reserved(self, place: int) -> int:
        """What a sequence that reads leaves of a step for those from a place on that generate."""
        return sum(behind.generates for behind in self.running[place:])

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Grow its block table, preempting from the last on; False if it came to itself."""
        while not self.pool.grow(sequence.block_table, tokens):
            if self._preempt() is sequence:
                return False
        return True

    def _preempt(self) -> Sequence:
        """The last one back into the queue; when it resumes, its known tokens are computed again.

        Those whose pages are not in other use by then are found.
        """
        sequence = self.running.pop()
        self.pool.release(sequence.block_table)
        sequence.num_computed = sequence.num_published = 0
        insort(self.waiting, sequence, key=_order)
        self.preemptions += 1
        return sequence

    def _admit(self, chunks: list[Chunk]) -> None:
        budget = self.max_num_batched_tokens - sum(chunk.count for chunk in chunks)
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            found = self._find(sequence)
            if not self._fits(sequence, found) or not self._readable(sequence, found, budget):
                return
            self._start(sequence, found)
            chunks.append(Chunk(sequence, self._count(sequence, budget)))
            budget -= chunks[-1].count

    def _admit_urgent(self) -> None:
        """Those of a higher priority than one that runs, which gives its pages up if need be."""
        while self.waiting and self.running and len(self.running) < self.max_num_seqs:
            sequence, last = self.waiting[0], self.running[-1]
            found = self._find(sequence)
            # What it leaves of a step must do for a token of each running one.
            budget = self.max_num_batched_tokens - len(self.running)
            if sequence.order[0] >= last.order[0] or not self._readable(sequence, found, budget):
                return
            if self._fits(sequence, found):
                self._start(sequence, found)
            elif self._would_fit(sequence, found):
                self._preempt()
            else:
                return

    def _find(self, sequence: Sequence) -> list[int]:
        """Pages that it can begin with. Its last token is computed in any case, to sample by."""
        if not self.prefix_caching or not sequence.skips_cached:
            return []
        most = (len(sequence.token_ids) - 1) // self.pool.page_size
        found = self.pool.find(self.page_digests(sequence, most))
        pages = self.unit // self.pool.page_size
        return found[: len(found) // pages * pages] if pages else found

    def _fits(self, sequence: Sequence, found: list[int]) -> bool:
        """Keep a page for each running sequence: one admitted too early is preempted at once."""
        need = self.pool.cost(found, len(sequence.token_ids))
        return need + len(self.running) <= self.pool.num_free

    def _would_fit(self, sequence: Sequence, found: list[int]) -> bool:
        """If all of lower priority were preempted, as far as none of them share pages."""
        lower = [s for s in self.running if s.order[0] > sequence.order[0]]
        freed = self.pool.num_free + sum(len(s.block_table) for s in lower)
        need = self.pool.cost(found, len(sequence.token_ids))
        return need + len(self.running) - len(lower) <= freed

    def _readable(self, sequence: Sequence, found: list[int], budget: int) -> bool:
        """Whether so many tokens of a step are enough for a sequence to begin."""
        left = len(sequence.token_ids) - len(found) * self.pool.page_size
        return (1 if self.chunked_prefill else left) <= budget

    def _start(self, sequence: Sequence, found: list[int]) -> None:
        """Run the first that waits. All its known tokens get their pages now, so that reading a
        prompt is never cut off half-way.
        """
        self.waiting.pop(0)
        self.pool.share(sequence.block_table, found)
        sequence.num_published = len(found)
        sequence.num_computed = len(found) * self.pool.page_size
        self.pool.grow(sequence.block_table, len(sequence.token_ids))
        insort(self.running, sequence, key=_order)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            if self.prefix_caching and sequence.skips_cached:
                self.prefix_cache_queries += len(sequence.token_ids)
                self.prefix_cache_hits += sequence.num_cached

    def _with_drafts(self, chunks: list[Chunk]) -> list[Chunk]:
        """Add to the chunks that sample what drafts fit, and pages for drafting the next ones."""
        budget = self.max_num_batched_tokens - sum(chunk.count for chunk in chunks)
        for chunk in chunks:
            if not chunk.samples:
                continue
            sequence = chunk.sequence
            known = len(sequence.token_ids)
            room = min(self.pool.room(sequence.block_table), sequence.max_length - 1)
            chunk.drafts = tuple(sequence.drafts[: min(budget, room - known)])
            budget -= len(chunk.drafts)
            # The next ones are drafted behind these, each but the first in a slot of its own.
            last = known + len(chunk.drafts) + self.num_drafts - 1
            self.pool.grow(sequence.block_table, min(last, room))
        return chunks


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
