import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.model import Model
from tests.random_checkpoint import (
    Quantize,
    dequantize_tensors,
    quantization_config,
    quantize_tensors,
    random_tensors,
    small_config,
    write_checkpoint,
    write_files,
)

ATTENTION = "model.layers.0.self_attn"
QKV = [f"{ATTENTION}.{p}_proj" for p in "qkv"]
MLP = "model.layers.0.mlp"
MOE = "model.layers.1.mlp"
BIAS = f"{MOE}.gate.e_score_correction_bias"


def small(**overrides: Any) -> dict[str, Any]:
    """One dense and one MoE layer, and the MTP layer: every kind of tensor once."""
    return small_config(num_hidden_layers=2, n_routed_experts=4, vocab_size=33, **overrides)


def open_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return Checkpoint(folder, ModelConfig.load(folder), dtype=dtype)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    checkpoint = open_checkpoint(folder, dtype)
    return Model(checkpoint.config, ops.load("reference"), checkpoint)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"shards": 3},
    {"mtp_copies": False},
    {"quantize": "fp8"},
    {"quantize": "fp8_block", "shards": 2},
    {"quantize": "int8", "mtp_copies": False},
]
CONFIGS: list[dict[str, Any]] = [
    {},
    {"use_qk_norm": True},
    {"attention_bias": False, "n_shared_experts": 2},
    {"tie_word_embeddings": True},
    {"num_nextn_predict_layers": 0},
    {"torch_dtype": "bfloat16"},
    {"torch_dtype": "float16"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("overrides", CONFIGS, ids=str)
def test_the_model_pulls_every_tensor_and_progress_adds_up(
    tmp_path: Path, overrides: dict[str, Any], variant: dict[str, Any]
) -> None:
    tensors = write_checkpoint(tmp_path, small(**overrides), **variant)
    config, done = ModelConfig.load(tmp_path), list[int]()
    checkpoint = Checkpoint(tmp_path, config, dtype=torch.float32, on_bytes=done.append)
    Model(config, ops.load("reference"), checkpoint)  # calls finish(), which refuses leftovers
    assert sum(done) == checkpoint.total_bytes == sum(t.nbytes for t in tensors.values())


def test_parts_are_stacked_in_the_order_asked_for(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, small())
    checkpoint = open_checkpoint(tmp_path)
    qkv = checkpoint.weight(QKV, [128, 32, 32], 64)
    assert qkv.scale is None and qkv.dtype == torch.float32
    assert torch.equal(qkv.data, torch.cat([tensors[f"{p}.weight"] for p in QKV]))
    gate_up = checkpoint.experts(f"{MOE}.experts", ("gate_proj", "up_proj"), 4, 24, 64)
    expected = [
        torch.cat([tensors[f"{MOE}.experts.{e}.{p}_proj.weight"] for p in ("gate", "up")])
        for e in range(4)
    ]
    assert torch.equal(gate_up.data, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("on_disk", ["float32", "bfloat16", "float16"])
def test_plain_weights_are_converted(tmp_path: Path, on_disk: str, dtype: torch.dtype) -> None:
    tensors = write_checkpoint(tmp_path, small(torch_dtype=on_disk))
    checkpoint = open_checkpoint(tmp_path, dtype)
    norm = checkpoint.tensor("model.norm.weight", (64,))
    down = checkpoint.weight([f"{MLP}.down_proj"], [64], 96)
    bias = checkpoint.tensor(BIAS, (4,), torch.float32)
    assert torch.equal(norm, tensors["model.norm.weight"].to(dtype))
    assert torch.equal(down.data, tensors[f"{MLP}.down_proj.weight"].to(dtype))
    assert torch.equal(bias, tensors[BIAS]) and bias.dtype == torch.float32


@pytest.mark.parametrize("kind", ["fp8", "fp8_block", "int8"])
def test_quantised_weights_keep_their_bytes_and_mean_the_same(
    tmp_path: Path, kind: Quantize
) -> None:
    tensors = write_checkpoint(tmp_path, small(), quantize=kind)
    plain = dequantize_tensors(tensors)
    checkpoint = open_checkpoint(tmp_path, torch.bfloat16)
    qkv = checkpoint.weight(QKV, [128, 32, 32], 64)
    experts = checkpoint.experts(f"{MOE}.experts", ("down_proj",), 4, 64, 24)
    assert qkv.dtype == torch.bfloat16 and qkv.dynamic_activations
    assert qkv.scale is not None and qkv.scale.dtype == torch.float32
    stored = torch.cat([tensors[f"{p}.weight"].view(torch.uint8) for p in QKV])
    assert torch.equal(qkv.data.view(torch.uint8), stored)
    dequantised = torch.cat([plain[f"{p}.weight"] for p in QKV])
    assert torch.equal(qkv.dequantize(torch.float32), dequantised)
    down = [plain[f"{MOE}.experts.{e}.down_proj.weight"] for e in range(4)]
    assert torch.equal(experts.dequantize(torch.float32), torch.stack(down))


def test_modules_without_a_scale_stay_plain_in_a_quantised_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small(), quantize="fp8")
    checkpoint = open_checkpoint(tmp_path, torch.bfloat16)
    eh_proj = checkpoint.weight(["model.layers.2.eh_proj"], [64], 128)
    head = checkpoint.weight(["model.layers.2.shared_head.head"], [33], 64)
    assert eh_proj.data.dtype == torch.bfloat16 and not eh_proj.dynamic_activations
    assert head.data.dtype == torch.float8_e4m3fn and head.scale is not None


@pytest.mark.parametrize("block", [(32, 32), (48, 16), (128, 128)], ids=str)
def test_blocks_that_do_not_line_up_still_mean_the_same(
    tmp_path: Path, block: tuple[int, int]
) -> None:
    """Query rows 128, key and value rows 32, expert rows 24: only blocks of 32 fit, and not all."""
    tensors = write_checkpoint(tmp_path, small(), quantize="fp8_block", block=block)
    plain = dequantize_tensors(tensors, block)
    checkpoint = open_checkpoint(tmp_path)
    qkv = checkpoint.weight(QKV, [128, 32, 32], 64)
    assert qkv.block == (block if block == (32, 32) else (1, block[1]))
    assert torch.equal(qkv.dequantize(), torch.cat([plain[f"{p}.weight"] for p in QKV]))
    gate_up = checkpoint.experts(f"{MOE}.experts", ("gate_proj", "up_proj"), 4, 24, 64)
    assert gate_up.block == (1, block[1])
    for e in range(4):
        parts = [plain[f"{MOE}.experts.{e}.{p}_proj.weight"] for p in ("gate", "up")]
        assert torch.equal(gate_up.dequantize()[e], torch.cat(parts))


def test_compressed_tensors_blocks_use_the_other_name(tmp_path: Path) -> None:
    block = (16, 32)
    stored = quantize_tensors(random_tensors(small()), "fp8_block", block)
    tensors = {n.replace("_scale_inv", "_scale"): t for n, t in stored.items()}
    quantization = quantization_config("fp8", block)
    quantization["config_groups"]["group_0"]["weights"] |= {
        "strategy": "block",
        "block_structure": list(block),
    }
    write_files(tmp_path, small(quantization_config=quantization), tensors)
    qkv = open_checkpoint(tmp_path).weight(QKV, [128, 32, 32], 64)
    plain = dequantize_tensors(stored, block)
    assert torch.equal(qkv.dequantize(), torch.cat([plain[f"{p}.weight"] for p in QKV]))


def test_scales_may_be_flat_or_bfloat16(tmp_path: Path) -> None:
    tensors = quantize_tensors(random_tensors(small()), "fp8")
    scale = f"{QKV[0]}.weight_scale"
    tensors[scale] = tensors[scale].flatten().to(torch.bfloat16)
    config = small(quantization_config=quantization_config("fp8", (1, 1)))
    write_files(tmp_path, config, tensors)
    q = open_checkpoint(tmp_path).weight(QKV[:1], [128], 64)
    assert q.scale is not None and q.scale.shape == (128, 1) and q.scale.dtype == torch.float32
    assert torch.equal(q.scale.flatten(), tensors[scale].float())


def test_every_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(small(use_qk_norm=True), mtp_copies=False)
    assert len(tensors) > 60
    for name in tensors:
        rest = {n: t for n, t in tensors.items() if n != name}
        write_files(tmp_path, small(use_qk_norm=True), rest)
        with pytest.raises(UsageError) as caught:
            load(tmp_path)
        assert str(caught.value).startswith(f"{name} is missing from {tmp_path}")


def test_the_routers_bias_is_never_defaulted(tmp_path: Path) -> None:
    tensors = random_tensors(small())
    del tensors[BIAS]
    write_files(tmp_path, small(), tensors)
    with pytest.raises(UsageError, match=f"{BIAS} is missing .* or with zeros in its place"):
        load(tmp_path)


def test_every_wrong_shape_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(small(use_qk_norm=True))
    for name, tensor in tensors.items():
        longer = torch.cat([tensor, tensor[:1]])
        write_files(tmp_path, small(use_qk_norm=True), tensors | {name: longer})
        with pytest.raises(UsageError) as caught:
            load(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{name} in {tmp_path}"), message
        assert str(list(longer.shape)) in message and str(list(tensor.shape)) in message


def test_leftover_tensors_are_counted_and_named(tmp_path: Path) -> None:
    tensors = random_tensors(small())
    extra = {f"model.layers.0.extra.{i}.weight": torch.ones(1) for i in range(5)}
    write_files(tmp_path, small(), tensors | extra)
    with pytest.raises(UsageError, match=r"5 tensors .*extra\.0\.weight, .*extra\.2\.weight, \.\."):
        load(tmp_path)


def test_a_config_that_asks_for_less_is_no_half_loaded_model(tmp_path: Path) -> None:
    write_files(tmp_path, small(use_qk_norm=False), random_tensors(small(use_qk_norm=True)))
    with pytest.raises(UsageError, match=r"holds 6 tensors .*q_norm"):
        load(tmp_path)


def test_skipped_tensors_are_not_leftovers(tmp_path: Path) -> None:
    write_files(tmp_path, small(), {"model.a": torch.ones(3), "model.b": torch.ones(2)})
    done: list[int] = []
    checkpoint = Checkpoint(
        tmp_path, ModelConfig.load(tmp_path), dtype=torch.float32, on_bytes=done.append
    )
    assert checkpoint.has("model.a") and not checkpoint.has("model.c")
    checkpoint.skip("model.a")
    checkpoint.tensor("model.b", (2,))
    checkpoint.tensor("model.b", (2,))  # a second look counts once
    checkpoint.finish()
    assert done == [12, 8]


Tensors = dict[str, Tensor]


def _without_scale(tensors: Tensors) -> None:
    del tensors[f"{QKV[1]}.weight_scale"]


def _with_two_scales(tensors: Tensors) -> None:
    tensors[f"{QKV[1]}.weight_scale_inv"] = tensors[f"{QKV[1]}.weight_scale"].clone()


def _with_a_plain_weight(tensors: Tensors) -> None:
    tensors[f"{QKV[1]}.weight"] = tensors[f"{QKV[1]}.weight"].float()


def _without_weight(tensors: Tensors) -> None:
    del tensors[f"{QKV[1]}.weight"]


def _plain_among_quantised(tensors: Tensors) -> None:
    _with_a_plain_weight(tensors)
    del tensors[f"{QKV[1]}.weight_scale"]


def _with_int8(tensors: Tensors) -> None:
    tensors[f"{QKV[1]}.weight"] = tensors[f"{QKV[1]}.weight"].to(torch.int8)


def _with_nan_scale(tensors: Tensors) -> None:
    tensors[f"{QKV[1]}.weight_scale"][7] = float("nan")


def _with_wrong_scale(tensors: Tensors) -> None:
    tensors[f"{QKV[1]}.weight_scale"] = torch.ones(31, 1)


def _with_nan_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"][3] = float("inf")


def _with_a_quantised_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(64).to(torch.float8_e4m3fn)
    tensors["model.norm.weight_scale"] = torch.ones(64, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_scale, "k_proj.weight in .* is fp8 and has no scale"),
        (_with_two_scales, "k_proj.weight in .* is fp8 and has two scales"),
        (_with_a_plain_weight, "k_proj.weight_scale in .* is a scale whose 8-bit weight is"),
        (_without_weight, "k_proj.weight_scale in .* 8-bit weight is missing"),
        (_plain_among_quantised, "q_proj.weight is .*e4m3fn and .*k_proj.weight is .*float32"),
        (_with_int8, "k_proj.weight in .* is int8, but .* a quantization_config for fp8"),
        (_with_nan_scale, "k_proj.weight_scale in .* not finite"),
        (_with_wrong_scale, r"k_proj.weight_scale in .* shape \[31, 1\].* means \[32, 1\]"),
        (_with_nan_norm, "model.norm.weight in .* not finite"),
        (_with_a_quantised_norm, "model.norm.weight in .* is fp8, but it is no linear weight"),
    ],
)
def test_quantisation_that_does_not_add_up(tmp_path: Path, damage: Any, message: str) -> None:
    tensors = quantize_tensors(random_tensors(small()), "fp8")
    damage(tensors)
    write_files(tmp_path, small(quantization_config=quantization_config("fp8", (1, 1))), tensors)
    with pytest.raises(UsageError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["fp8", "fp8_block"])
def test_every_fp8_tensor_has_its_scale_the_mtp_layers_too(tmp_path: Path, kind: Quantize) -> None:
    tensors = write_checkpoint(tmp_path, small(), quantize=kind)
    scales = [name for name in tensors if "_scale" in name]
    assert any(name.startswith("model.layers.2.mlp.experts") for name in scales)
    assert "model.layers.2.shared_head.head.weight_scale" in " ".join(scales)
    config = small(quantization_config=quantization_config(kind, (32, 32)))
    for scale in scales:
        write_files(tmp_path, config, {n: t for n, t in tensors.items() if n != scale})
        with pytest.raises(UsageError, match=f"{scale.partition('_scale')[0]} in .* has no scale"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["fp8", "fp8_block", "int8"])
def test_quantised_weights_need_a_quantization_config(tmp_path: Path, kind: Quantize) -> None:
    write_files(tmp_path, small(), quantize_tensors(random_tensors(small()), kind))
    with pytest.raises(UsageError, match="but config.json has no quantization_config"):
        open_checkpoint(tmp_path)


def test_a_corrupt_shard_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small(), shards=3)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match=f"{shard.name} is truncated"):
        open_checkpoint(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small())
    checkpoint = open_checkpoint(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(UsageError, match="model.safetensors is truncated or corrupt"):
        checkpoint.experts(f"{MOE}.experts", ("down_proj",), 4, 64, 24)


MiB = 2**20


@pytest.mark.parametrize("on_disk", ["bfloat16", "float32"])
def test_peak_memory_is_the_weights_and_one_group(tmp_path: Path, on_disk: str) -> None:
    config = small_config(
        torch_dtype=on_disk,
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1024,
        moe_intermediate_size=768,
        n_routed_experts=16,
    )
    tensors = write_checkpoint(tmp_path, config, shards=2)
    copies = ("layers.3.embed_tokens.weight", "shared_head.head.weight")
    held = 2 * sum(t.numel() for n, t in tensors.items() if not n.endswith(copies))
    group = 2 * 16 * (2 * 768) * 512  # an MoE layer's gate_up stack, the largest
    assert held > 120 * MiB > 4 * group
    command = [sys.executable, "-m", "tests.measure_load", str(tmp_path), "bfloat16"]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    memory = json.loads(run.stdout)
    assert memory["after"] - memory["before"] > held - 8 * MiB
    assert memory["peak"] - memory["before"] < held + group + 8 * MiB
