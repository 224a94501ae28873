"""Global memory: bounds, buffers, read-only arguments, and values that nothing defined."""

import pytest
import torch
from torch import Tensor

from glm_portable.virtual.cdna import OutOfBounds, UndefinedValue
from tests.virtual.cdna.programs import run

INT = torch.int32


def numbers(n: int = 64) -> Tensor:
    return torch.arange(1, n + 1, dtype=INT)


def buffer(limit: int) -> str:
    """A raw buffer of the first argument in s[12:15], of `limit` bytes."""
    return f"""
        s_mov_b32 s12, s4
        s_and_b32 s13, s5, 0xffff
        s_mov_b32 s14, {limit}
        s_mov_b32 s15, 0x27000
    """


@pytest.mark.parametrize("n", [63, 62])
@pytest.mark.parametrize("op", ["load", "store"])
def test_accesses_outside_the_tensor_name_the_first_lane(op: str, n: int) -> None:
    operands = "v3, v1" if op == "load" else "v1, v0"
    with pytest.raises(OutOfBounds, match=f"4 bytes outside every tensor, lane {n}"):
        run(f"global_{op}_dword {operands}, s[4:5]", numbers(n))


def test_a_guard_gap_lies_between_tensors() -> None:
    a, b = numbers(), numbers()
    with pytest.raises(OutOfBounds, match="lane 0"):
        run("global_load_dword v3, v1, s[4:5] offset:256", a, b)
    with pytest.raises(OutOfBounds, match="lane 0"):
        run("global_store_dword v1, v0, s[6:7] offset:-4", a, b)


def test_lanes_that_exec_disables_may_be_anywhere() -> None:
    x = numbers(63)
    run(
        """
        v_cmp_gt_u32 vcc, 63, v0
        s_and_saveexec_b64 s[20:21], vcc
        global_store_dword v1, v0, s[4:5]
        """,
        x,
    )
    assert torch.equal(x, torch.arange(63, dtype=INT))


def test_buffers_drop_stores_and_read_zeros_beyond_their_end() -> None:
    """Out of range is offset + inst_offset >= num_records."""
    x, y = numbers(), torch.full((64,), -1, dtype=INT)
    run(
        f"""
        {buffer(4 * 40)}
        buffer_load_dword v3, v1, s[12:15], 0 offen offset:32
        buffer_store_dword v0, v1, s[12:15], 0 offen offset:128
        s_waitcnt vmcnt(0)
        global_store_dword v1, v3, s[6:7]
        """,
        x,
        y,
    )
    assert torch.equal(y, torch.cat([numbers()[8:40], torch.zeros(32, dtype=INT)]))
    assert torch.equal(x[32:40], torch.arange(8, dtype=INT)) and torch.equal(x[40:], numbers()[40:])


def test_a_buffer_larger_than_its_tensor_does_not_hide_an_access_outside() -> None:
    with pytest.raises(OutOfBounds, match="outside every tensor, lane 63"):
        run(buffer(0x7FFFFFFE) + "buffer_load_dword v3, v1, s[12:15], 0 offen", numbers(63))


@pytest.mark.parametrize(
    "access",
    [
        "buffer_load_dwordx2 v[4:5], v1, s[12:15], 0 offen",  # lane 39: 4 of its 8 bytes
        "buffer_load_dword v4, v1, s[12:15], s16 offen",  # in by LLVM's rule, out by the ISA's
    ],
)
def test_accesses_that_rules_disagree_about_are_refused(access: str) -> None:
    with pytest.raises(OutOfBounds, match="at the limit of 160 bytes, .*lane 39"):
        run(f"{buffer(160)}\ns_mov_b32 s16, 4\n{access}", numbers(80))


def test_strided_buffers_are_refused() -> None:
    body = buffer(256) + "s_or_b32 s13, s13, 0x40000\nbuffer_load_dword v3, v1, s[12:15], 0 offen"
    with pytest.raises(Exception, match="a buffer resource with a stride"):
        run(body, numbers())


def test_arguments_are_read_only() -> None:
    with pytest.raises(OutOfBounds, match="store to read-only memory"):
        run("v_mov_b32 v3, 0\nglobal_store_dword v3, v0, s[0:1]", numbers())


@pytest.mark.parametrize("width", [1, 2, 4])
def test_unaligned_accesses_are_what_they_seem(width: int) -> None:
    """ROCm lets vector memory and LDS access any address; scalar loads drop the low bits."""
    name = {1: "ubyte", 2: "ushort", 4: "dword"}[width]
    x, y = torch.randint(0, 255, (260,), dtype=torch.uint8), torch.zeros(64, dtype=INT)
    run(
        f"""
        global_load_{name} v3, v1, s[4:5] offset:1
        s_waitcnt vmcnt(0)
        global_store_dword v1, v3, s[6:7]
        """,
        x,
        y,
    )
    rows = [x[4 * i + 1 : 4 * i + 1 + width] for i in range(64)]
    assert [v & 0xFFFFFFFF for v in y.tolist()] == [
        int.from_bytes(bytes(row.tolist()), "little") for row in rows
    ]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("global_load_dword v3, v9, s[4:5]", "undefined address"),
        ("global_load_dword v3, v1, s[30:31]", "undefined base address"),
        ("global_store_dword v1, v9, s[4:5]", "undefined stored value"),
        ("ds_write_b32 v9, v0", "undefined LDS address"),
        ("v_add_u32 v3, v9, v0\nglobal_store_dword v1, v3, s[4:5]", "undefined stored value"),
        ("s_cmp_eq_u32 s30, 0\ns_cbranch_scc1 end\nend:", "branch on undefined SCC"),
        ("s_mov_b64 exec, s[30:31]", "EXEC is set from an undefined value"),
        (
            "ds_write_b32 v1, v9\nds_read_b32 v3, v1\ns_waitcnt lgkmcnt(0)\n"
            "global_store_dword v1, v3, s[4:5]",
            "undefined stored value",
        ),
    ],
)
def test_undefined_values_fault_where_they_decide_something(body: str, what: str) -> None:
    with pytest.raises(UndefinedValue, match=what):
        run(body, numbers(), lds=256)


def test_undefined_lanes_count_only_where_they_are_used() -> None:
    x = numbers()
    run(
        """
        v_cmp_gt_u32 vcc, 32, v0
        s_and_saveexec_b64 s[20:21], vcc
        v_mov_b32 v3, v0
        global_store_dword v1, v3, s[4:5]
        """,
        x,
    )
    assert torch.equal(x[:32], torch.arange(32, dtype=INT))
    with pytest.raises(UndefinedValue, match="undefined stored value, lane 32"):
        run(
            """
            v_cmp_gt_u32 vcc, 32, v0
            s_and_saveexec_b64 s[20:21], vcc
            v_mov_b32 v3, v0
            s_mov_b64 exec, s[20:21]
            global_store_dword v1, v3, s[4:5]
            """,
            x,
        )
