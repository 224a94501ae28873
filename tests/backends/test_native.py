"""The CPU backend's own kernel: its numbers, its promise to neighbours, and where it comes from."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable.backends import cpu, reference
from glm_portable.backends.cpu import native
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.cases import CASES
from glm_portable.verify.cases.data import FP8, choices, normal, quantised, weight
from glm_portable.verify.metrics import faults
from tests.random_checkpoint import small_config, write_checkpoint

BF16 = torch.bfloat16
TOKENS = [1, 2, 7, 8, 9, 12, 13, 16, 17, 25, 64, 130]

needs_native = pytest.mark.skipif(
    native.library() is None,
    reason="needs a processor with AVX512-BF16 (Intel Cooper Lake or Sapphire Rapids, AMD Zen 4, "
    "and later) and a compiler `c++`; everything else of the CPU backend is tested without them",
)


def routing(tokens: int, e: int, k: int, kind: str = "spread") -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.rand(tokens, k, generator=g) + 0.1, choices(tokens, kind, e, k)


def mixture(d: int, f: int, e: int, dtype: torch.dtype = BF16) -> tuple[Weight, Weight]:
    return weight(e, 2 * f, d, dtype=dtype), weight(e, d, f, dtype=dtype, seed=2)


# Numbers


@needs_native
@pytest.mark.parametrize("t", TOKENS)
@pytest.mark.parametrize(("n", "r"), [(64, 64), (33, 31), (95, 1), (176, 352), (48, 37)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_with_tails_in_every_direction(t: int, n: int, r: int, with_bias: bool) -> None:
    def run(dtype: torch.dtype, backend: object) -> Tensor:
        bias = normal(n, seed=2).to(dtype) if with_bias else None
        w = backend.pack(weight(n, r, dtype=dtype))  # type: ignore[attr-defined]  # a module
        y: Tensor = backend.linear(normal(t, r).to(dtype), w, bias)  # type: ignore[attr-defined]
        return y

    exact, plain = run(torch.float64, reference), run(BF16, reference)
    assert faults(run(BF16, cpu), plain, exact) == []


@needs_native
@pytest.mark.parametrize("t", TOKENS)
@pytest.mark.parametrize(
    ("d", "f", "e", "k", "kind"),
    [
        (64, 32, 16, 4, "spread"),
        (64, 32, 16, 1, "spread"),
        (96, 40, 64, 8, "spread"),  # `up` begins within a panel
        (37, 11, 16, 4, "crowded"),  # odd widths; most experts are empty
        (64, 64, 4, 1, "same"),  # one expert for all
    ],
)
def test_experts_with_tails_in_every_direction(
    t: int, d: int, f: int, e: int, k: int, kind: str
) -> None:
    weights, chosen = routing(t, e, k, kind)

    def plain(dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        x = normal(t, d).to(dtype)
        return reference.experts(x, *mixture(d, f, e, dtype), weights.to(wide), chosen)

    gate_up, down = map(cpu.pack, mixture(d, f, e))
    got = cpu.experts(normal(t, d).to(BF16), gate_up, down, weights, chosen)
    assert faults(got, plain(BF16), plain(torch.float64)) == []


@needs_native
def test_silu_is_right_to_the_last_bit_over_its_whole_range() -> None:
    values = torch.cat([torch.linspace(-100, 100, 255), torch.tensor([0.0])]).to(BF16)
    x = torch.cat([values.view(-1, 32), torch.ones(8, 32, dtype=BF16)], 1)  # gate, then up
    gate_up = cpu.pack(Weight(torch.eye(64, dtype=BF16).unsqueeze(0), BF16))
    down = cpu.pack(Weight(torch.eye(64, 32, dtype=BF16).unsqueeze(0), BF16))
    ones = torch.ones(8, 1)
    got = cpu.experts(x, gate_up, down, ones, torch.zeros(8, 1, dtype=torch.int32))[:, :32]
    exact = torch.nn.functional.silu(values.double()).view(-1, 32)
    # Below -88.7 the exponential is no float32 and the result 0, as torch has it.
    assert torch.allclose(got.double(), exact, rtol=2**-8, atol=1e-36)


@needs_native
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so_in_its_row_alone(bad: float) -> None:
    x, (weights, chosen) = normal(15, 64).to(BF16), routing(15, 16, 4)
    plain, w = mixture(64, 32, 16), weight(96, 64, dtype=BF16)
    gate_up, down = map(cpu.pack, plain)
    before = cpu.experts(x, gate_up, down, weights, chosen), cpu.linear(x, cpu.pack(w))
    x[6, 5] = bad
    after = cpu.experts(x, gate_up, down, weights, chosen), cpu.linear(x, cpu.pack(w))
    expected = reference.experts(x, *plain, weights, chosen), reference.linear(x, w)
    others = torch.arange(15) != 6
    for a, b, e in zip(before, after, expected, strict=True):
        assert torch.equal(b[others], a[others])
        assert not e[6].isfinite().any()
        assert torch.equal(b[6].isnan(), e[6].isnan())
        assert torch.equal(b[6].isposinf(), e[6].isposinf())


# Neighbours


@needs_native
@settings(max_examples=40, deadline=None)
@given(t=st.integers(2, 70), n=st.integers(1, 130), r=st.integers(1, 130))
def test_neighbours_change_no_bit_of_a_linear_row(t: int, n: int, r: int) -> None:
    x, w = normal(t, r).to(BF16), cpu.pack(weight(n, r, dtype=BF16))
    together = cpu.linear(x, w)
    for i in range(t):
        assert torch.equal(together[i : i + 1], cpu.linear(x[i : i + 1], w))


@needs_native
@pytest.mark.parametrize("kind", ["spread", "crowded", "same"])
@pytest.mark.parametrize("t", [2, 8, 17, 64, 130])
def test_neighbours_change_no_bit_of_a_mixture(t: int, kind: str) -> None:
    x, (weights, chosen) = normal(t, 96).to(BF16), routing(t, 16, 4, kind)
    gate_up, down = map(cpu.pack, mixture(96, 40, 16))
    together = cpu.experts(x, gate_up, down, weights, chosen)
    for i in range(t):
        one = slice(i, i + 1)
        alone = cpu.experts(x[one], gate_up, down, weights[one], chosen[one])
        assert torch.equal(together[one], alone)


@needs_native
def test_the_number_of_threads_changes_no_bit() -> None:
    x, (weights, chosen) = normal(50, 96).to(BF16), routing(50, 16, 4)  # enough to be shared out
    gate_up, down = map(cpu.pack, mixture(96, 64, 16))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cpu.experts(x, gate_up, down, weights, chosen))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@needs_native
@pytest.mark.parametrize(("heads", "groups"), [(8, 2), (24, 1), (3, 3), (26, 2)])
def test_neighbours_change_no_bit_of_an_attended_token(heads: int, groups: int) -> None:
    k, v = (normal(40, 8, groups, 64, seed=s).to(BF16) for s in (1, 2))
    sequences = [(20, 1, [1, 2, 3]), (5, 3, [4]), (300, 1, list(range(1, 39))), (0, 1, [7]),
                 (0, 12, [9, 8]), (31, 8, [11, 12, 10, 13, 14])]  # fmt: skip
    step, q = Step.build(sequences, 8, cpu.device), normal(26, heads, 64, seed=3).to(BF16)
    together, begin = cpu.attend(q, KVCache(k, v), step, 0.25), 0
    for sequence, end in zip(sequences, step.query_ends, strict=True):
        alone = Step.build([sequence], 8, cpu.device)
        got = cpu.attend(q[begin:end], KVCache(k, v), alone, 0.25)
        assert torch.equal(together[begin:end], got)
        begin = end
    exact = reference.attend(q.double(), KVCache(k.double(), v.double()), step, 0.25)
    plain = reference.attend(q, KVCache(k, v), step, 0.25)
    assert faults(together, plain, exact) == []


@needs_native
@pytest.mark.parametrize(("experts", "d"), [(64, 96), (13, 37), (8, 16)])
def test_neighbours_change_no_bit_of_a_routers_score(experts: int, d: int) -> None:
    library = native.library()
    assert library is not None
    x, gate = normal(30, d).to(BF16), normal(experts, d, seed=1)
    together = native.scores(library, x, gate)
    assert torch.allclose(together.double(), x.double() @ gate.double().T, rtol=1e-5, atol=1e-5)
    for i in range(30):
        assert torch.equal(together[i : i + 1], native.scores(library, x[i : i + 1], gate))


@needs_native
def test_neighbours_change_no_bit_of_the_models_logits(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config(head_dim=32))
    config = ModelConfig.load(tmp_path)
    model = Model(config, cpu, Checkpoint(tmp_path, config, dtype=BF16))
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (9, 20), generator=g)

    def run(rows: list[int]) -> Tensor:
        """A prefill of 12, one of 3 and 5 single tokens, for the given sequences at once."""
        caches, out, done = model.allocate(3 * len(rows), 8), [], 0
        pages = [[3 * i + 2, 3 * i, 3 * i + 1] for i in range(len(rows))]
        for count in (12, 3, 1, 1, 1, 1, 1):
            step = Step.build([(done, count, p) for p in pages], 8, cpu.device)
            hidden = model.forward(ids[rows, done : done + count].flatten(), step, caches)
            out.append(torch.unflatten(model.logits(hidden), 0, (len(rows), count)))
            done += count
        return torch.cat(out, 1)

    together = run(list(range(9)))
    for row in range(9):
        assert torch.equal(together[row], run([row])[0])


# Layout


def unpacked(m: native.Matrices) -> Tensor:
    """The layout of `native.cpp` read backwards, padding included."""
    panels, pairs = -(-m.n // 32), -(-m.r // 2)
    laid = m.data.view(m.count, panels, pairs, 32, 2).transpose(2, 3)
    return laid.reshape(m.count, panels * 32, pairs * 2)


@needs_native
@pytest.mark.parametrize(("n", "r"), [(32, 2), (33, 31), (1, 1), (64, 50), (31, 64), (95, 33)])
def test_packing_keeps_every_number_and_pads_with_zeros(n: int, r: int) -> None:
    library = native.library()
    assert library is not None
    w, packed = normal(3, n, r).to(BF16), native.Matrices.empty(library, 3, n, r)
    packed.data.fill_(torch.nan)
    packed.fill(w)
    found = unpacked(packed)
    assert torch.equal(found[:, :n, :r], w)
    assert not found[:, n:].any() and not found[:, :, r:].any()


@needs_native
@pytest.mark.parametrize("kind", [FP8, torch.int8], ids=str)
@pytest.mark.parametrize("block", [None, (32, 16), (48, 24), (1, 20)])
@pytest.mark.parametrize("shape", [(5, 70, 65), (33, 64)])
def test_quantised_weights_are_packed_as_they_are_dequantised(
    kind: torch.dtype, block: tuple[int, int] | None, shape: tuple[int, ...]
) -> None:
    w = quantised(*shape, dtype=BF16, kind=kind, block=block)
    found = unpacked(cpu.pack(w).packed)[:, : shape[-2], : shape[-1]]
    assert torch.equal(found.reshape(shape), w.dequantize())


# Where it comes from


@pytest.fixture
def fresh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[Path]:
    """As at a first start, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, native.log.name)
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def assert_onednn_works(caplog: pytest.LogCaptureFixture, why: str) -> None:
    assert (cpu.kernel(), cpu.kernel()) == ("oneDNN", "oneDNN")
    assert [r.levelname for r in caplog.records] == ["WARNING"] and why in caplog.text
    for case in CASES:
        if case.op in ("linear", "experts"):
            assert case.findings(cpu, BF16) == (), case


def executable(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@needs_native
def test_without_a_compiler_onednn_serves(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    assert_onednn_works(caplog, "there is no compiler 'c++'")


@needs_native
def test_with_a_compiler_that_fails_onednn_serves(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    body = '[ "$1" = --version ] || { echo "native.cpp: error: no such header" >&2; exit 1; }'
    monkeypatch.setattr(native, "COMPILER", executable(fresh / "broken", body))
    assert_onednn_works(caplog, "failed: native.cpp: error: no such header")


def test_without_the_instructions_onednn_serves(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "NEEDED", {"no_processor_has_this"})
    assert_onednn_works(caplog, "this processor has no AVX512-BF16")


@needs_native
def test_a_second_start_takes_what_the_first_has_built(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert cpu.kernel() == "native AVX512-BF16"
    assert [r.levelname for r in caplog.records] == ["INFO"] and "AVX512-BF16" in caplog.text
    (kept,) = native.cache_folder().iterdir()
    native.library.cache_clear()

    def build(*_: object) -> Path:
        raise AssertionError("built again")

    monkeypatch.setattr(native, "_build", build)
    assert cpu.kernel() == "native AVX512-BF16"
    assert list(native.cache_folder().iterdir()) == [kept]


@needs_native
@pytest.mark.parametrize("damage", ["cut short", "empty", "altered"])
def test_a_damaged_file_is_built_anew(fresh: Path, damage: str) -> None:
    assert native.library() is not None
    (kept,) = native.cache_folder().iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # it is mapped here: write another file
    kept.write_bytes(
        {"cut short": whole[:5000], "empty": b"", "altered": whole[:-1] + b"!"}[damage]
    )
    native.library.cache_clear()
    assert cpu.kernel() == "native AVX512-BF16"
    files = list(kept.parent.iterdir())
    assert any(f.stem.endswith(native._digest(f.read_bytes())) for f in files)


@needs_native
def test_a_folder_that_cannot_be_written_is_done_without(
    fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (fresh / "cache").write_text("a file where the folder would be")
    assert cpu.kernel() == "native AVX512-BF16"
    assert "built anew at every start" in caplog.text


@needs_native
def test_two_processes_that_build_at_once_both_get_a_whole_library(tmp_path: Path) -> None:
    code = (
        "import torch; from glm_portable.backends import cpu; from glm_portable.ops import Weight\n"
        "w = cpu.pack(Weight(torch.eye(40, dtype=torch.bfloat16), torch.bfloat16))\n"
        "x = torch.ones(3, 40, dtype=torch.bfloat16)\n"
        "print(cpu.kernel(), torch.equal(cpu.linear(x, w), x))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment,
                         stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    assert [p.communicate()[0].strip() for p in running] == ["native AVX512-BF16 True"] * 2
    assert not [p for p in (tmp_path / "glm-portable" / "native").iterdir() if p.suffix != ".so"]


@needs_native
def test_the_process_keeps_one_openmp_runtime() -> None:
    assert native.library() is not None
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = {
        line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line or "/libiomp5" in line
    }
    assert files == {str(native._openmp())}
