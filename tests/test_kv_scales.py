"""Scales of the KV cache that a checkpoint was calibrated with, and which caches a model takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.glm import GLM, _kv_dtype
from glm_portable.model import Model
from glm_portable.parallel import Parallel
from tests.random_checkpoint import small_config, write_checkpoint

FP8, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
SPELLINGS = {
    "compressed-tensors": "self_attn.{0}_scale",
    "older": "self_attn.{0}_proj.{0}_scale",
    "oldest": "self_attn.{0}_proj.output_scale",
}


def calibrated(folder: Path, name: str, shape: tuple[int, ...], **scales: float) -> ModelConfig:
    """A checkpoint of four layers, the MTP layer's included, with scales k + layer, v + layer."""
    write_checkpoint(folder, small_config(vocab_size=256))
    (file,) = folder.glob("*.safetensors")
    tensors: dict[str, Tensor] = load_file(file)
    for layer in range(4):
        for which, value in scales.items():
            scale = torch.full(shape, value + layer, dtype=torch.bfloat16)
            tensors[f"model.layers.{layer}.{name.format(which)}"] = scale
    save_file(tensors, file)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weights = json.loads(index.read_text())
        weights["weight_map"] = dict.fromkeys(tensors, file.name)
        index.write_text(json.dumps(weights))
    return ModelConfig.load(folder)


def load(folder: Path, config: ModelConfig, kv_dtype: Any = None, **options: Any) -> Model:
    backend = ops.load("reference")
    weights = Checkpoint(folder, config, dtype=torch.float32, device=backend.device, **options)
    assert weights.loaded_bytes(None) > 0
    return Model(config, backend, weights, kv_dtype)


@pytest.mark.parametrize("name", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_scales_reach_the_pages(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    config = calibrated(tmp_path, name, shape, k=0.5, v=2.0)
    for dtype, unit in ((FP8, 1.0), (FNUZ, 2.0)):
        model = load(tmp_path, config, dtype)
        caches = model.allocate(2, 16)
        expected = [((0.5 + layer) * unit, (2.0 + layer) * unit) for layer in range(4)]
        assert [(cache.k_scale, cache.v_scale) for cache in caches] == expected
        assert model.has_kv_scales and caches[0].k_PSGC.dtype == dtype


def test_pages_in_the_models_type_need_no_scales(tmp_path: Path) -> None:
    config = calibrated(tmp_path, SPELLINGS["compressed-tensors"], (1,), k=0.5, v=2.0)
    caches = load(tmp_path, config).allocate(2, 16)
    assert {(cache.k_scale, cache.v_scale) for cache in caches} == {(1.0, 1.0)}


def test_every_rank_has_the_same_scales(tmp_path: Path) -> None:
    config = calibrated(tmp_path, SPELLINGS["oldest"], (1,), k=0.5, v=2.0)
    for rank in range(2):
        model = load(tmp_path, config, FP8, parallel=Parallel(rank, 2))
        assert model.allocate(1, 16)[1].k_scale == 1.5


@pytest.mark.parametrize(
    "shape, scales, message",
    [
        ((1,), {"k": 0.5}, "a k_scale for .*only one of k_scale and v_scale"),
        ((1,), {"k": -5.0, "v": 1.0}, r"is \[-5.0\]; .* one positive number"),
        ((1,), {"k": float("inf"), "v": 1.0}, "one positive number"),
        ((2,), {"k": 0.5, "v": 1.0}, r"is \[0.5, 0.5\]; .* strategy tensor"),
    ],
)
def test_scales_that_mean_nothing_are_refused(
    tmp_path: Path, shape: tuple[int, ...], scales: dict[str, float], message: str
) -> None:
    config = calibrated(tmp_path, SPELLINGS["compressed-tensors"], shape, **scales)
    with pytest.raises(UsageError, match=message):
        load(tmp_path, config, FP8)


def test_a_line_says_which_scales_are_used() -> None:
    notes: list[str] = []
    GLM.load(backend="cpu", kv_cache_dtype="fp8", on_note=notes.append)
    assert notes == [
        "KV cache in float8_e4m3fn, with scales of 1: the checkpoint has no k_scale and v_scale"
    ]


class Backend:
    """As far as the choice looks at it."""

    name = "chip"

    def __init__(self, fp8_pages: torch.dtype | None) -> None:
        self.fp8_pages = fp8_pages


def test_the_backend_says_which_fp8_it_takes() -> None:
    backend: Any = Backend(FNUZ)
    assert _kv_dtype("fp8", torch.bfloat16, backend) == FNUZ
    assert _kv_dtype("fp8_e4m3", torch.bfloat16, ops.load("cpu")) == FP8
    assert _kv_dtype("bfloat16", torch.bfloat16, backend) == torch.bfloat16
    assert _kv_dtype("auto", torch.float32, backend) == torch.float32
    with pytest.raises(UsageError, match="backend 'chip' takes no FP8 KV cache: leave .* auto"):
        _kv_dtype("fp8", torch.bfloat16, Backend(None))  # type: ignore[arg-type]  # see above
    with pytest.raises(UsageError, match="kv_cache_dtype bfloat16 is not the model's float32"):
        _kv_dtype("bfloat16", torch.float32, backend)
