"""What a wave may use before the s_waitcnt that covers it: nothing. Every latency is the worst."""

import pytest
import torch
from torch import Tensor

from glm_portable.virtual.cdna import MissingWait, UnwrittenLds
from tests.virtual.cdna.programs import run

INT = torch.int32
STORE = "global_store_dword v1, {}, s[6:7]"


def pair() -> tuple[Tensor, Tensor]:
    return torch.arange(100, 228, dtype=INT), torch.zeros(64, dtype=INT)


def loads(wait: str, used: str) -> str:
    return f"""
        global_load_dword v3, v1, s[4:5]
        global_load_dword v4, v1, s[4:5] offset:256
        {wait}
        {STORE.format(used)}
    """


@pytest.mark.parametrize(
    ("wait", "used", "first"), [(1, "v3", 100), (0, "v4", 164), (0, "v3", 100)]
)
def test_vector_loads_arrive_in_order(wait: int, used: str, first: int) -> None:
    x, y = pair()
    run(loads(f"s_waitcnt vmcnt({wait})", used), x, y)
    assert torch.equal(y, torch.arange(first, first + 64, dtype=INT))


@pytest.mark.parametrize(
    ("wait", "used", "line"),
    [
        ("", "v3", "v3, v1"),
        ("s_waitcnt vmcnt(1)", "v4", "v4, v1"),
        ("s_waitcnt vmcnt(2)", "v3", "v3, v1"),
        ("s_waitcnt lgkmcnt(0)", "v3", "v3, v1"),
        ("s_waitcnt vmcnt(63)", "v3", "v3, v1"),  # the field's maximum waits for nothing here
    ],
)
def test_a_missing_or_weak_wait_names_the_load(wait: str, used: str, line: str) -> None:
    x, y = pair()
    with pytest.raises(MissingWait, match=f"its result of 'global_load_dword {line}"):
        run(loads(wait, used), x, y)


def test_overwriting_a_register_under_way_is_refused() -> None:
    x, y = pair()
    with pytest.raises(MissingWait):
        run("global_load_dword v3, v1, s[4:5]\nv_mov_b32 v3, 0", x, y)


def test_scalar_loads_arrive_in_any_order() -> None:
    """So that only lgkmcnt(0) is sure of one of two (ISA section 4.4)."""
    x, y = pair()
    body = """
        s_load_dword s20, s[4:5], 0x0
        s_load_dword s21, s[4:5], 0x4
        s_waitcnt lgkmcnt({})
        v_mov_b32 v3, s20
        global_store_dword v1, v3, s[6:7]
    """
    run(body.format(0), x, y)
    assert (y == 100).all()
    with pytest.raises(MissingWait, match="s_load_dword s20"):
        run(body.format(1), x, y)


def test_lds_reads_arrive_in_order_also_beside_scalar_loads() -> None:
    """Of a scalar load and two reads, two have arrived at lgkmcnt(1): the first read for sure."""
    x, y = pair()
    body = """
        ds_write_b32 v1, v0
        s_waitcnt lgkmcnt(0)
        s_load_dword s20, s[4:5], 0x0
        ds_read_b32 v3, v1
        ds_read_b32 v4, v1
        s_waitcnt lgkmcnt({})
        {}
        global_store_dword v1, v3, s[6:7]
    """
    run(body.format(1, ""), x, y, lds=256)
    assert torch.equal(y, torch.arange(64, dtype=INT))
    for limit, use in ((1, "s_add_u32 s20, s20, 1"), (1, "v_mov_b32 v5, v4"), (2, "")):
        with pytest.raises(MissingWait):
            run(body.format(limit, use), x, y, lds=256)


@pytest.mark.parametrize(
    ("arch", "copy"),
    [
        ("gfx942", "global_load_lds_dword v1, s[4:5]"),
        ("gfx950", "global_load_lds_dwordx4 v5, s[4:5]"),
        ("gfx950", "buffer_load_dwordx4 v5, s[12:15], 0 offen lds"),
    ],
)
def test_copies_to_lds_arrive_at_their_wait(arch: str, copy: str) -> None:
    """Lane i's bytes at M0 + i * width, whatever its address (ISA section 9.1.9)."""
    x, y = torch.arange(256, dtype=INT), torch.zeros(64, dtype=INT)
    body = f"""
        s_mov_b32 s12, s4
        s_and_b32 s13, s5, 0xffff
        s_mov_b32 s14, 0x400
        s_mov_b32 s15, 0x27000
        s_mov_b32 m0, 64
        v_lshlrev_b32 v5, 4, v0
        {copy}
        {{}}
        ds_read_b32 v3, v1 offset:64
        s_waitcnt lgkmcnt(0)
        global_store_dword v1, v3, s[6:7]
    """
    run(body.format("s_waitcnt vmcnt(0)"), x, y, arch=arch, lds=64 + 1024)
    assert torch.equal(y, torch.arange(64, dtype=INT))
    for weaker in ("", "s_waitcnt vmcnt(1)", "s_waitcnt lgkmcnt(0)"):
        with pytest.raises(UnwrittenLds):
            run(body.format(weaker), x, y, arch=arch, lds=64 + 1024)


def test_a_store_is_there_once_it_was_waited_for_or_the_wave_ended() -> None:
    x, y = pair()
    body = """
        global_store_dword v1, v0, s[4:5]
        {}
        global_load_dword v3, v1, s[4:5]
        s_waitcnt vmcnt(0)
        global_store_dword v1, v3, s[6:7]
    """
    run(body.format("s_waitcnt vmcnt(0)"), x, y)
    assert torch.equal(x[:64], torch.arange(64, dtype=INT)) and torch.equal(y, x[:64])
