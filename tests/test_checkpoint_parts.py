"""What each rank reads of a checkpoint: its part of every weight, exactly, and not more."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Weight
from glm_portable.parallel import SINGLE, Parallel
from glm_portable.shards import Shard
from tests.random_checkpoint import Quantize, small_config, write_checkpoint
from tests.test_formats import held_bytes

CONFIG = small_config(
    vocab_size=264, moe_intermediate_size=48, num_hidden_layers=2, use_qk_norm=True,
    torch_dtype="bfloat16",
)  # fmt: skip
ATTENTION, MLP, EXPERTS = (f"model.layers.{n}" for n in ("0.self_attn", "0.mlp", "1.mlp.experts"))
KINDS = pytest.mark.parametrize("kind", [None, "fp8", "fp8_block", "int8"])
SPLITS = pytest.mark.parametrize(
    ("size", "groups"), [(2, 1), (4, 1), (4, 4), (4, 2)], ids=["TP2", "TP4", "EP4", "TP2xEP2"]
)


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """One of every way to be split, dequantised."""
    qkv = checkpoint.weight([f"{ATTENTION}.{p}_proj" for p in "qkv"], [128, 32, 32], 64)
    up = checkpoint.weight([f"{MLP}.gate_proj", f"{MLP}.up_proj"], [96, 96], 64)
    found: dict[str, Weight] = {
        "qkv": qkv,
        "o": checkpoint.weight([f"{ATTENTION}.o_proj"], [64], 128),
        "up": up,
        "down": checkpoint.weight([f"{MLP}.down_proj"], [64], 96),
        "experts up": checkpoint.experts(EXPERTS, ("gate_proj", "up_proj"), 8, 48, 64),
        "experts down": checkpoint.experts(EXPERTS, ("down_proj",), 8, 64, 48),
        "head": checkpoint.weight(["lm_head"], [264], 64),
    }
    plain = {name: w.dequantize(torch.float32) for name, w in found.items()}
    bias = checkpoint.tensor(f"{ATTENTION}.q_proj.bias", (128,))
    return plain | {"bias": bias, "norm": checkpoint.tensor("model.norm.weight", (64,))}


def cut(whole: dict[str, Tensor], rank: int, size: int, groups: int) -> dict[str, Tensor]:
    """The parts that a rank must have, cut from the whole weights."""
    kv = min(size, 2)

    def part(x: Tensor, index: int, count: int, dim: int = 0) -> Tensor:
        return x.chunk(count, dim)[index]

    def both(x: Tensor, index: int, count: int, dim: int) -> Tensor:
        return torch.cat([part(half, index, count, dim) for half in x.chunk(2, dim)], dim)

    q, k, v = torch.split(whole["qkv"], [128, 32, 32])
    here = size // groups
    up, down = (part(whole[f"experts {n}"], rank // here, groups) for n in ("up", "down"))
    return {
        "qkv": torch.cat([part(q, rank, size), *(part(x, rank * kv // size, kv) for x in (k, v))]),
        "o": part(whole["o"], rank, size, 1),
        "up": both(whole["up"], rank, size, 0),
        "down": part(whole["down"], rank, size, 1),
        "experts up": both(up, rank % here, here, 1),
        "experts down": part(down, rank % here, here, 2),
        "head": part(whole["head"], rank, size),
        "bias": part(whole["bias"], rank, size),
        "norm": whole["norm"],
    }


def opened(folder: Path, parallel: Parallel = SINGLE, **options: Any) -> Checkpoint:
    config = ModelConfig.load(folder)
    return Checkpoint(folder, config, dtype=torch.bfloat16, parallel=parallel, **options)


@SPLITS
@KINDS
def test_a_rank_holds_its_part_exactly(
    tmp_path: Path, kind: Quantize | None, size: int, groups: int
) -> None:
    """Slices of 48, 24 and 12 rows and columns do not fit blocks of 32."""
    write_checkpoint(tmp_path, CONFIG, quantize=kind, shards=2)
    whole = weights(opened(tmp_path))
    for rank in range(size):
        found = weights(opened(tmp_path, Parallel(rank, size, groups)))
        expected = cut(whole, rank, size, groups)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert torch.equal(value, expected[name]), (rank, name)


@pytest.mark.parametrize(
    ("kind", "target"),
    [(None, None), (None, "w8a8"), ("fp8_block", None), ("fp8_block", "w8a8"), ("int8", None),
     ("int8", "bf16")],
)  # fmt: skip
@pytest.mark.parametrize(("size", "groups"), [(4, 1), (4, 2)], ids=["TP4", "TP2xEP2"])
def test_the_size_told_is_the_size_loaded(
    tmp_path: Path, kind: Quantize | None, target: str | None, size: int, groups: int
) -> None:
    write_checkpoint(tmp_path, CONFIG, quantize=kind, block=(8, 8))
    done: list[int] = []
    checkpoint = opened(
        tmp_path, Parallel(1, size, groups), quantization=target, on_bytes=done.append
    )
    told = checkpoint.loaded_bytes(target)
    model = Model(checkpoint.config, ops.load("reference"), checkpoint)
    assert told == held_bytes(model)
    assert sum(done) == checkpoint.total_bytes


def test_only_the_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and experts of other ranks are not; of rows, what lies between two slices is."""
    write_checkpoint(tmp_path, CONFIG)
    read: list[int] = []
    plain = Shard.read_into

    def counted(shard: Shard, offset: int, out: Tensor) -> None:
        read.append(out.nbytes)
        plain(shard, offset, out)

    monkeypatch.setattr(Shard, "read_into", counted)

    def bytes_of(parallel: Parallel, *arguments: Any) -> int:
        checkpoint = opened(tmp_path, parallel)
        read.clear()
        call = checkpoint.experts if len(arguments) > 3 else checkpoint.weight
        call(*arguments)
        return sum(read)

    gate_up: Any = (EXPERTS, ("gate_proj", "up_proj"), 8, 48, 64)
    down: Any = ([f"{MLP}.down_proj"], [64], 96)
    assert bytes_of(SINGLE, *gate_up) == 8 * 2 * 48 * 64 * 2
    assert bytes_of(Parallel(3, 4, 1), *gate_up) == 8 * 2 * 12 * 64 * 2
    assert bytes_of(Parallel(3, 4, 4), *gate_up) == 2 * 2 * 48 * 64 * 2
    assert bytes_of(Parallel(3, 4), *down) == (63 * 96 + 24) * 2
