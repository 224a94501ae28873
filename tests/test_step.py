"""How a step lays out its sequences, against the definitions in its docstring."""

from array import array
from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from glm_portable.ops import Step, ids

PAGE = 4
HOST = torch.device("cpu")
Laid = tuple[int, int, Sequence[int]]


@st.composite
def sequences(draw: st.DrawFn) -> list[Laid]:
    """Any mix; half of the time of one token each, as where every sequence generates."""
    counts = st.just(1) if draw(st.booleans()) else st.integers(1, 9)
    found: list[Laid] = []
    for _ in range(draw(st.integers(1, 9))):
        cached, count = draw(st.integers(0, 20)), draw(counts)
        need = -(-(cached + count) // PAGE)
        pages = st.lists(st.integers(0, 2**27), min_size=need, max_size=need + 2)
        found.append((cached, count, array("i", draw(pages))))
    return found


@given(sequences())
def test_every_number_of_a_step(laid: list[Laid]) -> None:
    step = Step.build(laid, PAGE, HOST)
    positions = [cached + n for cached, count, _ in laid for n in range(count)]
    slots = [
        pages[at // PAGE] * PAGE + at % PAGE
        for cached, count, pages in laid
        for at in range(cached, cached + count)
    ]
    ends = [sum(count for _, count, _ in laid[: n + 1]) for n in range(len(laid))]
    lengths = [cached + count for cached, count, _ in laid]
    width = max(len(pages) for *_, pages in laid)
    table = [[*pages, *[0] * (width - len(pages))] for *_, pages in laid]
    assert step.positions_T.tolist() == positions and step.slots_T.tolist() == slots
    assert step.query_ends_B.tolist() == ends == list(step.query_ends)
    assert step.kv_lengths_B.tolist() == lengths == list(step.kv_lengths)
    assert step.block_table_BP.tolist() == table
    int32s = [step.query_ends_B, step.kv_lengths_B, step.block_table_BP]
    assert {x.dtype for x in (step.positions_T, step.slots_T)} == {torch.int64}
    assert {x.dtype for x in int32s} == {torch.int32}
    assert all(x.is_contiguous() for x in (step.positions_T, step.slots_T, *int32s))
    # What a kernel is given begins where its loads may be wide: that is compiled into it.
    assert all(x.storage_offset() * x.itemsize % 16 == 0 for x in (step.slots_T, *int32s))


def test_numbers_of_a_list() -> None:
    found = ids([7, 2**40], HOST)
    assert found.dtype == torch.int64 and found.tolist() == [7, 2**40]
