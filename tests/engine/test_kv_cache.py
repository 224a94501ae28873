"""The page pool: every page has one owner, and a growth that fails changes nothing."""

from hypothesis import given
from hypothesis import strategies as st

from glm_portable.engine.kv_cache import PagePool


@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 30)), max_size=40),
)
def test_pages_have_one_owner(
    num_pages: int, page_size: int, actions: list[tuple[int, int | None]]
) -> None:
    """Each action grows a table to a number of tokens, or releases it (None)."""
    pool = PagePool(num_pages, page_size)
    tables: list[list[int]] = [[] for _ in range(4)]
    for owner, tokens in actions:
        table, before, free = tables[owner], list(tables[owner]), pool.num_free
        if tokens is None:
            pool.release(table)
            assert table == [] and pool.num_free == free + len(before)
        elif pool.grow(table, tokens):
            assert table[: len(before)] == before, "pages in use must not move"
            assert len(table) == max(len(before), -(-tokens // page_size))
        else:
            assert table == before and pool.num_free == free
            assert -(-tokens // page_size) - len(before) > free
        held = [page for table in tables for page in table]
        assert len(held) == len(set(held)) == pool.num_used
        assert set(held) <= set(range(num_pages))
