"""Atomic operations, as Triton emits them for tl.atomic_* and as the ISA describes them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from glm_portable.virtual.cdna import LdsRace, MissingWait, OutOfBounds, UndefinedValue, launch
from tests.virtual.cdna.kernels import atomic, claim, histogram
from tests.virtual.cdna.programs import run

INT, BF16, F16 = torch.int32, torch.bfloat16, torch.float16
N = 250

REDUCE = {"add": "sum", "max": "amax", "min": "amin"}


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def updated(operation: str, x: Tensor, at: Tensor, value: Tensor) -> Tensor:
    """The array after all updates; every value is exact, so their order does not count."""
    if operation in REDUCE:
        return x.double().scatter_reduce(0, at.long(), value.double(), REDUCE[operation])
    result = x.clone()
    for i, v in zip(at.tolist(), value, strict=True):
        old = result[i]
        result[i] = {"and": old & v, "or": old | v, "xor": old ^ v, "swap": v}[operation]
    return result


@pytest.mark.parametrize(("arch", "keep"), [("gfx942", True), ("gfx950", False)])
@pytest.mark.parametrize(
    ("operation", "dtype"),
    [
        *((operation, INT) for operation in ("add", "max", "min", "and", "or", "xor", "swap")),
        ("add", torch.int64),
        ("max", torch.int64),
        ("min", torch.uint32),
        ("max", torch.uint32),
        ("add", torch.float32),
        ("max", torch.float32),
        ("min", torch.float32),
        ("add", torch.float64),
        ("add", BF16),
        ("add", F16),
    ],
)
def test_atomics_of_triton(arch: str, keep: bool, operation: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    # Triton 3.9.0 combines signed numbers of a wave by their unsigned order, for atomic_max and
    # atomic_min without a use of the result: wrong where signs differ, and right without signs.
    signed = dtype in (INT, torch.int64)
    low = (
        0 if dtype == torch.uint32 or (signed and operation in ("max", "min") and not keep) else -4
    )
    x, value = (torch.randint(low, 5, (n,), generator=g).to(dtype) for n in (40, N))
    # To few places of `x`, but for swap: of several, which one stays is not defined.
    at = torch.randint(0, 40, (N,), generator=g, dtype=INT)
    if operation == "swap":
        x, at = torch.zeros(N, dtype=dtype), torch.randperm(N, generator=g, dtype=INT)
    expected = updated(operation, x.clone(), at, value)
    before, old = x.clone(), torch.zeros(N, dtype=dtype)
    launch(atomic, (2,), x, at, value, old, N, OP=operation, KEEP=keep, BLOCK=128, arch=arch)
    assert torch.equal(x.double(), expected.double())
    if keep:
        alone = torch.bincount(at, minlength=len(x))[at] == 1
        assert alone.any() and torch.equal(old[alone], before[at[alone].long()])
        assert old.double().abs().max() > 0 or operation == "swap"


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_one_program_claims_a_lock(arch: str) -> None:
    lock, out = torch.zeros(1, dtype=INT), torch.full((5,), -1, dtype=INT)
    launch(claim, (5,), lock, out, arch=arch)
    assert lock.item() == 1 and out.tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_atomics_in_lds(arch: str) -> None:
    x = torch.randint(0, 32, (N,), generator=torch.Generator().manual_seed(0), dtype=INT)
    out = torch.zeros(32, dtype=INT)
    launch(histogram, (1,), x, out, N, BLOCK=256, BINS=32, arch=arch)
    assert torch.equal(out, torch.bincount(x, minlength=32).int())


def test_a_result_needs_its_wait() -> None:
    x = torch.zeros(64, dtype=INT)
    body = "global_atomic_add v3, v1, v0, s[4:5] sc0\n{}\nv_add_u32 v3, v3, v3"
    run(body.format("s_waitcnt vmcnt(0)"), x)
    assert torch.equal(x, torch.arange(64, dtype=INT))
    with pytest.raises(MissingWait, match="global_atomic_add"):
        run(body.format(""), x)


def test_operands_and_bounds_are_checked() -> None:
    x = torch.zeros(63, dtype=INT)
    with pytest.raises(OutOfBounds, match="lane 63"):
        run("global_atomic_add v1, v0, s[4:5]", x)
    with pytest.raises(UndefinedValue, match="undefined atomic operand"):
        run("global_atomic_add v1, v9, s[4:5]", torch.zeros(64, dtype=INT))
    with pytest.raises(MissingWait):
        run("global_load_dword v5, v1, s[4:5]\nglobal_atomic_add v1, v5, s[4:5]", x.new_zeros(64))


def test_lds_atomics_race_with_plain_accesses_alone() -> None:
    start = "v_mov_b32 v4, 0\nds_write_b32 v4, v4\ns_waitcnt lgkmcnt(0)\ns_barrier\n"
    add = "ds_add_u32 v4, v0\ns_waitcnt lgkmcnt(0)\n"
    fetch = "ds_read_b32 v3, v4\ns_waitcnt lgkmcnt(0)\nglobal_store_dword v1, v3, s[4:5]"
    for seed in range(6):
        x = torch.zeros(128, dtype=INT)
        run(f"{start}{add}s_barrier\n{fetch}", x, waves=2, lds=4, seed=seed)
        assert (x == 64 * 127).all()
        with pytest.raises(LdsRace):
            run(start + add + fetch, x, waves=2, lds=4, seed=seed)
