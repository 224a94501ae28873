"""The note in an AMD code object is read right, and must say what the assembly says."""

import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glm_portable.virtual.codegen import CHIPS, Artifact, amd, compile_for, hsaco
from glm_portable.virtual.codegen.metrics import Disagreement
from tests.virtual.codegen.small_kernels import matmul, matmul_args

WIDTHS = ((0xCC, ">B", 0, 2**8), (0xCD, ">H", 0, 2**16), (0xCE, ">I", 0, 2**32),
          (0xD0, ">b", -(2**7), 2**7), (0xD1, ">h", -(2**15), 2**15),
          (0xD2, ">i", -(2**31), 2**31), (0xD3, ">q", -(2**63), 2**63),
          (0xCF, ">Q", 0, 2**64))  # fmt: skip


def pack(value: Any) -> bytes:
    """MessagePack's shortest form, as its specification gives it."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if -32 <= value < 128:
            return struct.pack("b", value)
        tag, code = next((t, c) for t, c, low, end in WIDTHS if low <= value < end)
        return bytes([tag]) + struct.pack(code, value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return _head(len(data), (0xA0, 32), ((0xD9, ">B"), (0xDA, ">H"), (0xDB, ">I"))) + data
    if isinstance(value, list):
        head = _head(len(value), (0x90, 16), ((0xDC, ">H"), (0xDD, ">I")))
        return head + b"".join(map(pack, value))
    head = _head(len(value), (0x80, 16), ((0xDE, ">H"), (0xDF, ">I")))
    return head + b"".join(pack(k) + pack(v) for k, v in value.items())


def _head(size: int, short: tuple[int, int], wide: tuple[tuple[int, str], ...]) -> bytes:
    if size < short[1]:
        return bytes([short[0] | size])
    tag, code = next((t, c) for t, c in wide if size < 256 ** struct.calcsize(c))
    return bytes([tag]) + struct.pack(code, size)


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=300)
VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False),
    lambda v: st.lists(v, max_size=20) | st.dictionaries(st.text(max_size=5), v, max_size=20),
    max_leaves=40,
)


@given(VALUES)
def test_messagepack_is_read_back(value: Any) -> None:
    assert hsaco.unpack(pack(value)) == value


def test_what_is_no_note_is_refused() -> None:
    with pytest.raises(ValueError, match="follow the MessagePack value"):
        hsaco.unpack(pack(1) + b"\x00")
    with pytest.raises(ValueError, match="0xc4"):
        hsaco.unpack(b"\xc4\x01\x00")
    with pytest.raises(ValueError, match="not an AMD GPU code object"):
        hsaco.kernel_record(b"\x7fELF" + bytes(60))


@pytest.fixture(params=["gfx942", "gfx950"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    arguments = matmul_args(torch.bfloat16, (64, 64, 64))
    return compile_for(matmul, arguments, CHIPS[request.param], {"num_warps": 4})


def test_assembly_and_code_object_agree(artifact: Artifact) -> None:
    record = amd.metadata(artifact)
    assert record["max_flat_workgroup_size"] == 256 and record["wavefront_size"] == 64
    assert 16 < record["vgpr_count"] <= 512 and record["kernarg_segment_size"] > 8 * 3
    assert hsaco.machine(artifact.binary) == artifact.chip.elf_machine


def test_a_disagreement_is_an_error(artifact: Artifact) -> None:
    count = amd.metadata(artifact)["vgpr_count"]
    changed = artifact.assembly.replace(f".vgpr_count:     {count}", ".vgpr_count:     7")
    assert changed != artifact.assembly
    with pytest.raises(Disagreement, match=f"vgpr_count 7 and {count}"):
        amd.read(replace(artifact, assembly=changed))
    other = next(c for c in CHIPS.values() if c.is_amd and c != artifact.chip)
    with pytest.raises(Disagreement, match=f"not {other.name}"):
        amd.read(replace(artifact, chip=other))
    with pytest.raises(Disagreement, match="no line like"):
        amd.read(replace(artifact, assembly=artifact.assembly.replace(".vgpr_count", ".x")))


def test_waves_are_what_the_compiler_counts() -> None:
    """Its own comment in the assembly, over kernels from 8 waves a SIMD to 1."""
    seen = set()
    for tile, warps in (((16, 16, 32), 1), ((64, 64, 64), 4), ((128, 128, 64), 4)):
        for target in ("gfx942", "gfx950"):
            arguments = matmul_args(torch.bfloat16, tile)
            made = compile_for(matmul, arguments, CHIPS[target], {"num_warps": warps})
            waves = amd.read(made).waves
            assert waves == amd.occupancy(made.assembly)
            seen.add(waves)
    assert len(seen) >= 3
