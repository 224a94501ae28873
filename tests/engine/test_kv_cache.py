"""The page pool: who holds a page, which can be found, and a growth that fails changes nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_portable.engine.kv_cache import Digest, PagePool, page_digest, salt_digest


@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.lists(
        st.tuples(st.integers(0, 3), st.none() | st.integers(0, 30) | st.just("share")), max_size=40
    ),
)
def test_pages_are_counted_by_their_holders(
    num_pages: int, page_size: int, actions: list[tuple[int, int | str | None]]
) -> None:
    """Each action grows a table to a number of tokens, releases it (None), or publishes what table
    0 has and begins the table with it.
    """
    pool = PagePool(num_pages, page_size)
    tables: list[list[int]] = [[] for _ in range(4)]
    digests = [bytes([n]) for n in range(num_pages)]
    for owner, action in actions:
        table, before, free = tables[owner], list(tables[owner]), pool.num_free
        if action is None:
            pool.release(table)
            assert table == []
        elif action == "share":
            for page, digest in zip(tables[0], digests, strict=False):
                pool.publish(page, digest)
            found = pool.find(digests)
            if not table:
                cost = pool.cost(found, 0)
                pool.share(table, found)
                assert table == found and pool.num_free == free - cost
        elif pool.grow(table, int(action)):
            assert table[: len(before)] == before, "pages in use must not move"
            assert len(table) == max(len(before), -(-int(action) // page_size))
        else:
            assert table == before and pool.num_free == free
            assert -(-int(action) // page_size) - len(before) > free
        held = Counter(page for table in tables for page in table)
        assert [held[page] for page in range(num_pages)] == pool._holders
        assert len(held) == pool.num_used == num_pages - pool.num_free


def chain(tokens: list[int], page_size: int, salt: str = "") -> list[Digest]:
    digests = [salt_digest(salt)]
    for begin in range(0, len(tokens), page_size):
        digests.append(page_digest(digests[-1], tokens[begin : begin + page_size]))
    return digests[1:]


def test_a_digest_tells_tokens_their_order_those_before_and_the_salt() -> None:
    same = chain([1, 2, 3, 4], 2)
    assert same == chain([1, 2, 3, 4], 2) and all(len(digest) == 32 for digest in same)
    others = [
        chain([2, 1, 3, 4], 2),
        chain([1, 2, 4, 3], 2),
        chain([3, 4, 1, 2], 2),
        chain([1, 2, 3, 4], 2, "salt"),
        chain([256, 2, 3, 4], 2),
        chain([1, 2, 3, 260], 2),
    ]
    assert len({digests[1] for digests in [same, *others]}) == 7
    assert others[1][0] == same[0], "what comes later changes nothing"


@pytest.mark.parametrize("salt", ["", "a", "ä", "\ud800", "a\0"])
def test_any_text_is_a_salt(salt: str) -> None:
    assert len({salt_digest(s) for s in [salt, "b", "a\0\0"]}) == 3


def test_of_two_equal_pages_the_first_is_found() -> None:
    pool = PagePool(4, 2)
    first: list[int] = []
    second: list[int] = []
    pool.grow(first, 2)
    pool.grow(second, 2)
    pool.publish(first[0], b"x")
    pool.publish(second[0], b"x")
    assert pool.find([b"x"]) == first
    pool.release(second)
    assert pool.find([b"x"]) == first


def test_what_is_used_up_is_not_found() -> None:
    pool = PagePool(2, 1)
    table: list[int] = []
    pool.grow(table, 2)
    for page, digest in zip(table, [b"x", b"y"], strict=True):
        pool.publish(page, digest)
    pool.release(table)
    assert pool.num_used == 0 and len(pool.find([b"x", b"y"])) == 2
    pool.grow(table, 1)
    assert len(pool.find([b"x"])) == 1 and pool.find([b"y"]) == [], "the last page goes first"
    pool.grow(table, 2)
    assert pool.find([b"x"]) == []
