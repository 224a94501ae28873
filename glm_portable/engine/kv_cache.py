"""Which pages of the KV cache belong to whom; torch-free.

A page holds the keys and values of `page_size` consecutive tokens of one sequence, at the same
page number in every layer. A sequence's block table lists its pages in order (vLLM's paged
attention, Kwon et al. 2023).
"""


class PagePool:
    """Hands out pages 0 to num_pages - 1, each to one block table at a time."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        # A stack: the page freed last is the one most likely still in a processor's cache.
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """How many pages hold that many tokens."""
        return -(-tokens // self.page_size)

    def missing(self, block_table: list[int], tokens: int) -> int:
        """How many pages the table lacks to hold that many tokens."""
        return max(0, self.pages_for(tokens) - len(block_table))

    def room(self, block_table: list[int]) -> int:
        """How many tokens the table could hold if it took every free page."""
        return (len(block_table) + self.num_free) * self.page_size

    def grow(self, block_table: list[int], tokens: int) -> bool:
        """Add pages until the table holds that many tokens; if they run out, change nothing."""
        count = self.missing(block_table, tokens)
        if count > len(self._free):
            return False
        block_table.extend(self._free.pop() for _ in range(count))
        return True

    def shrink(self, block_table: list[int], tokens: int) -> None:
        """Take back the pages behind those that hold that many tokens."""
        kept = self.pages_for(tokens)
        self._free.extend(reversed(block_table[kept:]))
        del block_table[kept:]

    def release(self, block_table: list[int]) -> None:
        """Take all pages back and empty the table."""
        self._free.extend(reversed(block_table))
        block_table.clear()
