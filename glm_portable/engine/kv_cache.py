"""Which pages of the KV cache belong to whom, and which of them can be used again; torch-free.

A page holds the keys and values of `page_size` consecutive tokens of one sequence, at the same
page number in every layer. A sequence's block table lists its pages in order (vLLM's paged
attention, Kwon et al. 2023).

A full page never changes again, so sequences that begin alike can share it. It is known by a digest
of its tokens and of all tokens before them, since a token's keys and values depend on those, and of
the salt of the request: equal digests are equal tokens at equal positions. A page that nobody holds
any more can be found by its digest until it is needed for something else.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, MutableSequence, Sequence

Digest = bytes
"""32 bytes. Whoever could choose tokens that collide could read another's answer from them."""


def salt_digest(salt: str) -> Digest:
    """What the digests of a request begin with; requests share pages if it is the same."""
    # A lone surrogate, which JSON can spell, is no UTF-8.
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def page_digest(before: Digest, token_ids: Sequence[int]) -> Digest:
    """Of a page with these tokens that follows the page, or the salt, with the digest `before`."""
    content = before + array("q", token_ids).tobytes()
    return hashlib.blake2b(content, digest_size=32, person=b"page").digest()


class PagePool:
    """Hands out pages 0 to num_pages - 1.

    A page is held by one or more block tables, or kept (by none, but it can be found), or blank.
    Only a full page that has been published is ever in a second table, and nobody writes to it.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        # A stack: the page freed last is the one most likely still in a processor's cache.
        self._blank = list(range(num_pages - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._holders = [0] * num_pages
        self._page_of: dict[Digest, int] = {}
        self._digest_of: dict[int, Digest] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._blank) + len(self._kept)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    def pages_for(self, tokens: int) -> int:
        """How many pages hold that many tokens."""
        return -(-tokens // self.page_size)

    def missing(self, block_table: Sequence[int], tokens: int) -> int:
        """How many pages the table lacks to hold that many tokens."""
        return max(0, self.pages_for(tokens) - len(block_table))

    def room(self, block_table: Sequence[int]) -> int:
        """How many tokens the table could hold if it took every free page."""
        return (len(block_table) + self.num_free) * self.page_size

    def find(self, digests: Iterable[Digest]) -> list[int]:
        """The pages with these digests, up to the first that is not there."""
        pages = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def cost(self, found: Sequence[int], tokens: int) -> int:
        """How many free pages a new table takes for that many tokens if it begins with `found`."""
        return sum(page in self._kept for page in found) + self.missing(found, tokens)

    def share(self, block_table: MutableSequence[int], found: Iterable[int]) -> None:
        """Add pages that `find` has just returned."""
        for page in found:
            self._kept.pop(page, None)
            self._holders[page] += 1
            block_table.append(page)

    def grow(self, block_table: MutableSequence[int], tokens: int) -> bool:
        """Add pages until the table holds that many tokens; if they run out, change nothing."""
        count = self.missing(block_table, tokens)
        if not count:
            return True
        if count > self.num_free:
            return False
        block_table.extend(self._take() for _ in range(count))
        return True

    def publish(self, page: int, digest: Digest) -> None:
        """Let a full page be found. Where another with the same digest is known, that one stays."""
        if digest not in self._page_of:
            self._page_of[digest], self._digest_of[page] = page, digest

    def withdraw(self, page: int) -> None:
        """Let a page that is held not be found any more: what is in it is not right."""
        digest = self._digest_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]

    def shrink(self, block_table: MutableSequence[int], tokens: int) -> None:
        """Take back the pages behind those that hold that many tokens."""
        kept = self.pages_for(tokens)
        if kept >= len(block_table):
            return
        self._give_back(block_table[kept:])
        del block_table[kept:]

    def release(self, block_table: MutableSequence[int]) -> None:
        """Take all pages back and empty the table."""
        self._give_back(block_table)
        del block_table[:]

    def _give_back(self, pages: Sequence[int]) -> None:
        # From its end: of a sequence's pages the last, which the fewest share, is used up first.
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._digest_of:
                self._kept[page] = None
            else:
                self._blank.append(page)

    def forget(self) -> None:
        """Let no page be found any more; tables keep theirs."""
        self._blank.extend(self._kept)
        self._kept.clear()
        self._page_of.clear()
        self._digest_of.clear()

    def _take(self) -> int:
        """A page to write to: a blank one, or the one that has been kept unused for longest."""
        if self._blank:
            page = self._blank.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            del self._page_of[self._digest_of.pop(page)]
        self._holders[page] = 1
        return page
