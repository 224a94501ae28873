"""Instructions that move values between lanes or to scalar registers."""

import pytest

from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.operands import M0, VCC
from tests.virtual.cdna.single import (
    M32,
    new_wave,
    refused,
    scalar,
    set_exec,
    set_scalar,
    set_vector,
    step,
    vector,
)

ALL = (1 << 64) - 1
NUMBERS = [1000 + i for i in range(64)]


@pytest.mark.parametrize(("mask", "lane"), [(ALL, 0), (1 << 63, 63), (0xA0, 5), (0, 0)])
def test_read_first_lane(mask: int, lane: int) -> None:
    """The first lane that EXEC enables; lane 0 where there is none."""
    wave = new_wave()
    set_vector(wave, 1, NUMBERS)
    set_exec(wave, mask)
    step(wave, "v_readfirstlane_b32 s7, v1")
    assert scalar(wave, 7) == NUMBERS[lane]


@pytest.mark.parametrize("lane", [0, 1, 31, 32, 63, 64, 70, M32])
@pytest.mark.parametrize("mask", [0, 1, ALL])
def test_read_and_write_lane(lane: int, mask: int) -> None:
    """Six bits of the lane's number count; EXEC does not."""
    wave = new_wave()
    set_vector(wave, 1, NUMBERS)
    set_exec(wave, mask)
    set_scalar(wave, 4, lane)
    step(wave, "v_readlane_b32 s7, v1, s4")
    assert scalar(wave, 7) == NUMBERS[lane & 63]
    set_scalar(wave, 5, 77)
    step(wave, "v_writelane_b32 v1, s5, s4")
    assert vector(wave, 1) == [77 if i == lane & 63 else x for i, x in enumerate(NUMBERS)]


def test_lanes_by_constant_and_special_registers() -> None:
    wave = new_wave()
    set_vector(wave, 1, NUMBERS)
    step(wave, "v_readlane_b32 vcc_lo, v1, 9")
    assert wave.read_scalars(VCC, 1) == NUMBERS[9]
    step(wave, "v_readfirstlane_b32 m0, v1")
    assert wave.read_scalars(M0, 1) == NUMBERS[0]
    step(wave, "v_writelane_b32 v1, -1, 3")
    assert vector(wave, 1)[3] == M32


@pytest.mark.parametrize("mask", [0, 1, M32, 0xDEADBEEF])
def test_mask_bit_count(mask: int) -> None:
    """V_MBCNT: the mask's bits below the lane, of lanes 0-31 and of 32-63, added to a sum."""
    wave = new_wave()
    set_vector(wave, 1, mask)
    set_vector(wave, 2, [10 * i for i in range(64)])
    step(wave, "v_mbcnt_lo_u32_b32 v3, v1, v2")
    low = [(mask & (1 << min(i, 32)) - 1).bit_count() + 10 * i for i in range(64)]
    assert vector(wave, 3) == low
    step(wave, "v_mbcnt_hi_u32_b32 v4, v1, v2")
    high = [(mask & (1 << max(i - 32, 0)) - 1).bit_count() + 10 * i for i in range(64)]
    assert vector(wave, 4) == high


def test_lane_numbers() -> None:
    wave = new_wave()
    step(wave, "v_mbcnt_lo_u32_b32 v0, -1, 0")
    step(wave, "v_mbcnt_hi_u32_b32 v0, -1, v0")
    assert vector(wave, 0) == list(range(64))


@pytest.mark.parametrize("group", [16, 32])
def test_swaps(group: int) -> None:
    """As the CDNA4 ISA: lane i of the second register and lane i + group of the first, for i in the
    even groups."""
    wave = new_wave("gfx950")
    first, second = list(NUMBERS), [2000 + i for i in range(64)]
    set_vector(wave, 1, first)
    set_vector(wave, 2, second)
    step(wave, f"v_permlane{group}_swap_b32_e32 v1, v2")
    for i in range(64):
        if i // group % 2 == 0:
            second[i], first[i + group] = first[i + group], second[i]
    assert (vector(wave, 1), vector(wave, 2)) == (first, second)


def test_swaps_need_every_lane() -> None:
    wave = new_wave("gfx950")
    set_exec(wave, 3)
    with pytest.raises(UnsupportedInstruction, match="EXEC"):
        step(wave, "v_permlane32_swap_b32_e32 v1, v2")


def test_exchange() -> None:
    wave = new_wave()
    set_vector(wave, 1, NUMBERS)
    set_vector(wave, 2, 5)
    set_exec(wave, 0xF0)
    step(wave, "v_swap_b32 v1, v2")
    assert vector(wave, 1) == [5 if 4 <= i < 8 else x for i, x in enumerate(NUMBERS)]
    assert vector(wave, 2) == [x if 4 <= i < 8 else 5 for i, x in enumerate(NUMBERS)]


def test_refusals() -> None:
    refused("v_readlane_b32 v0, v1, 3", "destination 'v0'")
    refused("v_readlane_b32 s0, s1, 3", "not a vector register")
    refused("v_readfirstlane_b32 s0, v[1:2]", "not a vector register")
    refused("v_permlane16_swap_b32 v1, s2", "not a vector register", "gfx950")
    refused("v_permlane16_swap_b32_e64 v1, v2 fi:1", "modifier fi", "gfx950")
    refused("v_permlane32_swap_b32 v1, v2", "not on gfx942")
