"""That a digest sees every bit, and that a model's digests cover all that its backend reads."""

import ctypes
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.backends.cpu.native import Matrices
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.digest import WORDS, Digests, digest, digests
from glm_portable.model import Model
from glm_portable.ops import Ops, Weight
from glm_portable.parallel import Parallel
from glm_portable.virtual import connect
from tests.random_checkpoint import (
    Quantize,
    small_config,
    write_checkpoint,
)

EXPERTS = small_config()["n_routed_experts"]


def model_of(folder: Path, backend: Ops, dtype: torch.dtype, **place: Any) -> Model:
    config = ModelConfig.load(folder)
    parallel = Parallel(**place)
    return Model(config, backend, Checkpoint(folder, config, dtype=dtype, parallel=parallel))


def all_digests(model: Model) -> Digests:
    found: Digests = {}
    part = 0
    while now := model.digests(part):
        assert not found.keys() & now.keys()
        found |= now
        part += 1
    return found


def changed(model: Model, then: Digests) -> list[tuple[str, int]]:
    """(name, expert) of each digest that is another now."""
    now = all_digests(model)
    assert now.keys() == then.keys()
    pairs = [(name, e, old) for name, every in then.items() for e, old in enumerate(every)]
    return [(name, e) for name, e, old in pairs if now[name][e] != old]


@pytest.mark.parametrize("size", [1, 7, 8, 8 * WORDS, 8 * WORDS * 3 + 13])
def test_it_is_the_sum_that_is_described(size: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    words = np.frombuffer(data.tobytes() + bytes(-size % 8), np.int64).tolist()
    blocks = len(words) // WORDS
    sums = [sum(words[i * WORDS : (i + 1) * WORDS]) for i in range(blocks + 1)]
    expected = sum((2 * i + 1) * s for i, s in enumerate(sums)) % 2**64
    assert digest(torch.from_numpy(data)).item() % 2**64 == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_no_flipped_bit_escapes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-128, 127, (2, 5, 3 * dtype.itemsize), generator=generator, dtype=torch.int8)
    x = x.view(dtype)
    then, codes = digest(x, 2), x.view(torch.uint8).view(-1)
    for place in range(len(codes)):
        for bit in range(8):
            codes[place] ^= 1 << bit
            first = place < len(codes) // 2
            assert (digest(x, 2) != then).tolist() == [first, not first]
            codes[place] ^= 1 << bit
    assert torch.equal(digest(x, 2), then)


def test_an_exchange_of_blocks_is_seen() -> None:
    x = torch.arange(3 * WORDS)
    other = x.view(3, WORDS)[[1, 0, 2]].view(-1)
    assert digest(x) != digest(other)
    assert digest(x) == digest(x.view(3, WORDS)) == digest(torch.stack([x, x], 1)[:, 0])


def test_bytes_that_begin_anywhere_are_read() -> None:
    x = torch.arange(40, dtype=torch.int8)
    assert digest(x[3:35]) == digest(x[3:35].clone())


def moe(model: Model) -> Any:
    found = model.layers[-1].moe
    assert found is not None
    return found


def flip(x: Tensor) -> None:
    """The lowest bit of a byte in the middle, where the computation reads it."""
    if x.is_mkldnn:
        address, size = torch.ops.mkldnn.data_ptr(x), torch.ops.mkldnn._nbytes(x)
    else:
        address, size = x.data_ptr(), x.nbytes
    ctypes.c_uint8.from_address(address + size // 2).value ^= 1


def test_faults_of_experts_and_router_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config(use_qk_norm=True))
    model = model_of(tmp_path, ops.load("reference"), torch.bfloat16)
    bias, down, gate_up = moe(model).bias, moe(model).down.data, moe(model).gate_up.data
    other = torch.arange(EXPERTS) != 3
    order = torch.tensor([1, 0, *range(2, EXPERTS)])
    faults = [
        (down, down * other[:, None, None]),
        (bias, torch.zeros_like(bias)),
        (gate_up, gate_up[order]),
    ]
    then, found = all_digests(model), []
    assert changed(model, then) == []
    for tensor, wrong in faults:
        whole = tensor.clone()
        tensor.copy_(wrong)
        found.append(changed(model, then))
        tensor.copy_(whole)
    last = f"layers[{len(model.layers) - 1}].moe"
    assert found == [
        [(f"{last}.down.data", 3)],
        [(f"{last}.bias", e) for e in range(EXPERTS)],
        [(f"{last}.gate_up.data", 0), (f"{last}.gate_up.data", 1)],
    ]
    assert changed(model, then) == []


@pytest.mark.parametrize(
    "load, quantize, held",
    [
        (lambda: ops.load("reference"), "fp8", lambda w: [w.data, w.scale]),
        (lambda: ops.load("reference"), "int8", lambda w: [w.data, w.scale]),
        (lambda: ops.load("cpu"), None, lambda w: [w.packed[3]]),
        (lambda: ops.promising(ops.load("cpu")), "fp8", lambda w: [w.packed[3]]),
        (
            lambda: connect("rocm", "gfx942"),
            "fp8",
            lambda w: [w.packed.matrices.data, w.packed.matrices.scale],
        ),
        (lambda: connect("rocm", "gfx942"), None, lambda w: [w.packed.matrices.data]),
    ],
)
def test_a_flipped_bit_is_seen_where_the_backend_reads_it(
    tmp_path: Path, load: Any, quantize: Quantize | None, held: Any
) -> None:
    write_checkpoint(tmp_path, small_config(), quantize=quantize)
    # oneDNN lays out float32 on every processor.
    backend = load()
    dtype = torch.float32 if backend.name == "cpu" else torch.bfloat16
    model = model_of(tmp_path, backend, dtype)
    assert model.mtp is not None and model.mtp.layer.moe is not None
    weights = [moe(model).down, model.layers[0].attention.qkv, model.mtp.layer.moe.gate_up]
    then = all_digests(model)
    for w in weights[:1] if backend.name == "cpu" else weights:
        for x in held(w):
            flip(x)
            assert len(changed(model, then)) == 1
            flip(x)
    assert changed(model, then) == []


def test_every_tensor_is_read_once() -> None:
    """One that is part of another, too: the second name would cost a second reading."""
    data = torch.arange(64, dtype=torch.int8).view(4, 16)
    w = Weight(data[:, :12], torch.bfloat16, packed=(data, data))
    found = digests(ops.load("reference"), "w", {"a": w, "b": w}, (), experts=4)
    assert {name: len(numbers) for name, numbers in found.items()} == {"w.a.packed[0]": 4}


def test_matrices_of_the_native_kernel_are_told_apart() -> None:
    data = torch.randn(4, 640).to(torch.bfloat16)
    w = Weight(
        torch.empty(4, 20, 32, device="meta"),
        torch.bfloat16,
        packed=Matrices(cast(ctypes.CDLL, None), data, 4, 20, 32),
    )
    then = digests(ops.load("cpu"), "w", w, (), experts=4)["w.packed.data"]
    flip(data[2])
    now = digests(ops.load("cpu"), "w", w, (), experts=4)["w.packed.data"]
    assert [a != b for a, b in zip(then, now, strict=True)] == [False, False, True, False]


def test_a_rank_has_digests_of_its_own_slice(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config(vocab_size=256))
    places = [{"size": 2, "expert_groups": groups} for groups in (1, 2)]
    for place in places:
        found = [
            all_digests(model_of(tmp_path, ops.load("reference"), torch.float32, rank=r, **place))
            for r in (0, 1)
        ]
        assert found[0].keys() == found[1].keys()
        whole = {name for name in found[0] if found[0][name] == found[1][name]}
        assert {n.rpartition(".")[2] for n in whole} >= {"input_norm", "bias"}
        assert not any(".moe.down" in name or "embed" in name for name in whole)
        assert len(found[0]["layers[1].moe.down.data"]) == EXPERTS // place["expert_groups"]
