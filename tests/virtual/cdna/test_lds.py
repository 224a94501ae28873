"""LDS: bounds, what was never written, and accesses that no barrier orders."""

import pytest
import torch

from glm_portable.virtual.cdna import LdsOutOfBounds, LdsRace, UnwrittenLds
from tests.virtual.cdna.programs import run

# Each wave reads what the next one wrote: byte addresses 4 * ((work-item + 64) % 128) of 2 waves.
NEIGHBOUR = "v_xor_b32 v2, 0x100, v1"
STORE = "global_store_dword v1, v3, s[4:5]"
SEEDS = range(8)


def out(n: int = 128) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int32)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_orders_writes_and_reads(seed: int) -> None:
    x = out()
    body = f"""
        {NEIGHBOUR}
        ds_write_b32 v1, v0
        s_waitcnt lgkmcnt(0)
        s_barrier
        ds_read_b32 v3, v2
        s_waitcnt lgkmcnt(0)
        {STORE}
    """
    run(body, x, waves=2, lds=512, seed=seed)
    assert torch.equal(x, torch.arange(128, dtype=torch.int32) ^ 64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("left_out", ["s_barrier", "s_waitcnt lgkmcnt(0)"])
def test_without_barrier_or_wait_a_read_is_refused(left_out: str, seed: int) -> None:
    """The wait counts as well: a write is not there before it, barrier or not."""
    lines = ["ds_write_b32 v1, v0", "s_waitcnt lgkmcnt(0)", "s_barrier", "ds_read_b32 v3, v2"]
    lines.remove(left_out)
    body = "\n".join([NEIGHBOUR, *lines, "s_waitcnt lgkmcnt(0)", STORE])
    with pytest.raises((LdsRace, UnwrittenLds)):
        run(body, out(), waves=2, lds=512, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_overwriting_what_others_still_read_is_a_race(seed: int) -> None:
    body = f"""
        {NEIGHBOUR}
        ds_write_b32 v1, v0
        s_waitcnt lgkmcnt(0)
        s_barrier
        ds_read_b32 v3, v2
        s_waitcnt lgkmcnt(0)
        ds_write_b32 v1, v1
    """
    with pytest.raises(LdsRace, match="(reads|overwrites) what another wave (writes|reads)"):
        run(body, out(), waves=2, lds=512, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_read_that_lands_after_the_barrier_races_with_the_next_write(seed: int) -> None:
    """Wave 1 writes in the epoch in which wave 0's read, issued before, has yet to land."""
    body = f"""
        {NEIGHBOUR}
        ds_write_b32 v1, v0
        s_waitcnt lgkmcnt(0)
        s_barrier
        ds_read_b32 v3, v2
        s_barrier
        ds_write_b32 v1, v1
        s_waitcnt lgkmcnt(0)
    """
    with pytest.raises(LdsRace):
        run(body, out(), waves=2, lds=512, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_waves_may_write_the_same_value(seed: int) -> None:
    """Copies of one tile in two waves: both write it, and each reads its own without a barrier."""
    x = out()
    body = f"""
        v_and_b32 v2, 63, v0
        v_lshlrev_b32 v4, 2, v2
        ds_write_b32 v4, v2
        ds_read_b32 v3, v4
        s_waitcnt lgkmcnt(0)
        {STORE}
    """
    run(body, x, waves=2, lds=256, seed=seed)
    assert torch.equal(x, torch.arange(128, dtype=torch.int32) % 64)


@pytest.mark.parametrize("seed", SEEDS)
def test_waves_may_not_write_different_values(seed: int) -> None:
    body = """
        v_and_b32 v4, 0xff, v1
        ds_write_b32 v4, v0
        s_waitcnt lgkmcnt(0)
    """
    with pytest.raises(LdsRace, match=r"wave [01] overwrites what another wave writes \(wave [01]"):
        run(body, out(), waves=2, lds=256, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_third_wave_may_not_read_what_two_write(seed: int) -> None:
    body = f"""
        v_mov_b32 v4, 0
        v_cmp_gt_u32 vcc, 0x80, v0
        s_and_saveexec_b64 s[20:21], vcc
        ds_write_b32 v4, v4
        s_mov_b64 exec, s[20:21]
        ds_read_b32 v3, v4
        s_waitcnt lgkmcnt(0)
        {STORE}
    """
    with pytest.raises((LdsRace, UnwrittenLds)):
        run(body, out(192), waves=3, lds=256, seed=seed)


def test_unwritten_bytes_are_refused_one_by_one() -> None:
    write = "v_mov_b32 v5, 0\nds_write_b16 v5, v0\n"
    run(write + "ds_read_u16 v3, v5", lds=4)
    with pytest.raises(UnwrittenLds, match="read of unwritten LDS, address 0x0"):
        run(write + "ds_read_b32 v3, v5\ns_waitcnt lgkmcnt(0)", lds=4)


@pytest.mark.parametrize("op", ["ds_write_b32 v1, v0", "ds_read_b32 v3, v1"])
def test_out_of_bounds_names_lane_and_offset(op: str) -> None:
    with pytest.raises(LdsOutOfBounds, match="outside the 252 bytes of LDS, lane 63, address 0xfc"):
        run(op, lds=252)
