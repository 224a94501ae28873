"""How kernels are started, arguments passed, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from glm_portable.errors import UsageError
from glm_portable.virtual.cdna import Hang, OutOfBounds, UnsupportedInstruction, launch
from tests.virtual.cdna.kernels import axpy, reorder
from tests.virtual.cdna.programs import run

N = 200


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def xyz() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(N, generator=g) for _ in range(2))
    return x, y, torch.zeros(N)


Three = tuple[Tensor, Tensor, Tensor]


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_positions_names_and_a_grid_that_is_called(arch: str, xyz: Three) -> None:
    x, y, z = xyz
    statistics = launch(
        axpy,
        lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),),
        x, y, n=N, out_ptr=z, a=0.5, twice=True, BLOCK=64, arch=arch,
        num_warps=1, num_stages=1, waves_per_eu=2, matrix_instr_nonkdim=16,
    )  # fmt: skip
    assert torch.equal(z, 2 * (0.5 * x + y))
    assert (statistics.workgroups, statistics.waves) == (4, 4)
    assert statistics.total == sum(statistics.instructions.values()) == sum(statistics.counts)
    assert statistics.instructions["memory"] > 0 and "mfma" not in statistics.instructions


def test_none_is_compiled_in(xyz: Three) -> None:
    x, _, z = xyz
    launch(axpy, (4,), x, None, z, N, 3, False, BLOCK=64)
    assert torch.equal(z, 3 * x)


def test_views_share_their_storage_and_only_what_they_span_is_open(xyz: Three) -> None:
    x, y, _ = xyz
    whole = torch.zeros(N + 64)
    launch(axpy, (2,), whole[64:], y, whole[:128], 128, 1.0, False, BLOCK=64)
    assert torch.equal(whole[:128], y[:128]) and not whole[128:].any()
    with pytest.raises(OutOfBounds, match="outside every tensor"):
        launch(axpy, (2,), x[:100], y, whole, 128, 1.0, False, BLOCK=64)


def test_any_seed_gives_the_same_result() -> None:
    x = torch.randperm(256).int()
    for seed in range(2):
        out = torch.zeros_like(x)
        launch(reorder, (1,), x, out, OP="sort", N=256, seed=seed)
        assert torch.equal(out, x.sort().values)


@pytest.mark.parametrize("op", ["flip", "cumsum", "gather", "transpose"])
def test_moves_between_lanes_and_waves(op: str) -> None:
    x, out = torch.randint(0, 99, (256,), dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    launch(reorder, (1,), x, out, OP=op, N=256, arch="gfx950")
    expected = {
        "flip": x.flip(0),
        "cumsum": x.cumsum(0),
        "gather": x[(torch.arange(256) * 7 + 3) % 256],
        "transpose": x.view(16, 16).T.reshape(-1),
    }
    assert torch.equal(out, expected[op].int())


def test_what_cannot_be_simulated_is_refused_in_a_sentence(xyz: Three) -> None:
    x, y, z = xyz
    arguments: tuple[Any, ...] = (x, y, z, N, 1.0, False)

    def refused(match: str, kernel: Any = axpy, args: Any = arguments, **named: Any) -> None:
        with pytest.raises(UsageError, match=match):
            launch(kernel, (4,), *args, **{"BLOCK": 64, **named})

    refused("'gfx90a' is not simulated; use one of gfx942, gfx950", arch="gfx90a")
    tuner = triton.autotune([triton.Config({"BLOCK": 64})], key=[])
    refused("Autotuner, not a kernel of triton.jit", kernel=tuner(axpy))
    refused("num_wraps", num_wraps=2)
    refused("on meta; the simulator takes CPU tensors", args=(x.to("meta"), *arguments[1:]))
    descriptor = TensorDescriptor(x, [N], [1], [64])
    refused("TensorDescriptor cannot be simulated", args=(descriptor, *arguments[1:]))
    with pytest.raises(UsageError, match="grid .* is not one to three positive numbers"):
        launch(axpy, (0,), *arguments, BLOCK=64)


def test_a_program_that_does_not_end_is_stopped() -> None:
    with pytest.raises(Hang, match="still running after 1000 instructions at line [67]: s_"):
        run("again:\ns_nop 0\ns_branch again", max_instructions=1000)


def test_scratch_memory_is_refused() -> None:
    with pytest.raises(UnsupportedInstruction, match="scratch memory .64 bytes a lane"):
        run("s_nop 0", directives="  .amdhsa_private_segment_fixed_size 64")


def test_a_wave_that_ends_does_not_hold_a_barrier() -> None:
    x = torch.zeros(64, dtype=torch.int32)
    run(
        """
        v_readfirstlane_b32 s20, v0
        s_cmp_lt_u32 s20, 0x40
        s_cbranch_scc1 first
        s_endpgm
        first:
        s_barrier
        global_store_dword v1, v0, s[4:5]
        """,
        x,
        waves=2,
    )
    assert torch.equal(x, torch.arange(64, dtype=torch.int32))
