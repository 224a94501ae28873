"""Checkpoints of msmodelslim: both recipes, every layout of the files, and every refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_portable import ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.cli import main
from glm_portable.config import W8A8, ModelConfig
from glm_portable.convert import Conversion
from glm_portable.errors import UsageError
from glm_portable.model import Model
from tests.modelslim_checkpoint import (
    ROUTER_BIAS,
    Recipe,
    Tags,
    Tensors,
    lose_router_biases,
    modelslim_tensors,
    write_modelslim,
)
from tests.random_checkpoint import quantization_config, random_tensors, small_config, write_files
from tests.test_model import IDS, prefill

CONFIG = small_config(
    num_hidden_layers=5, first_k_dense_replace=3, n_routed_experts=4, use_qk_norm=True
)
Q = "model.layers.0.self_attn.q_proj"
MTP = "model.layers.5"


def load(folder: Path, **options: Any) -> Model:
    config = ModelConfig.load(folder)
    weights = Checkpoint(folder, config, dtype=torch.float32, **options)
    return Model(config, ops.load("reference"), weights)


def outputs(model: Model) -> tuple[Tensor, Tensor]:
    """Logits of the model and of its MTP layer."""
    with torch.inference_mode():
        step, caches = prefill(model, len(IDS) - 1)
        hidden = model.forward(IDS[:-1], step, caches)
        assert model.mtp is not None
        drafted = model.mtp(IDS[1:], hidden, step, caches[-1])
        return model.logits(hidden), model.mtp_logits(drafted)


def as_compressed_tensors(folder: Path, tensors: Tensors) -> None:
    """The same weights in the INT8 format that is tested against transformers."""
    quantization = quantization_config("int8", (1, 1))
    kept = {n: t for n, t in tensors.items() if not n.endswith("_offset")}
    write_files(folder, CONFIG | {"quantization_config": quantization}, kept)


@pytest.mark.parametrize("layout", [{}, {"shards": 3}, {"shards": 3, "index": False}], ids=str)
@pytest.mark.parametrize("recipe", ["lab_practice", "guide"])
def test_both_recipes_compute_what_their_weights_mean(
    recipe: Recipe, layout: dict[str, Any], tmp_path: Path
) -> None:
    tensors, tags = modelslim_tensors(CONFIG, recipe=recipe)
    assert (tags["model.layers.0.self_attn.o_proj.weight"] == "FLOAT") == (recipe == "guide")
    assert tags[f"{MTP}.self_attn.q_proj.weight"] == "FLOAT"
    write_modelslim(tmp_path / "slim", CONFIG, tensors, tags, **layout)
    as_compressed_tensors(tmp_path / "other", tensors)
    assert ModelConfig.load(tmp_path / "slim").quantization == W8A8
    model, other = load(tmp_path / "slim"), load(tmp_path / "other")
    assert model.layers[0].attention.qkv.data.dtype == torch.int8
    assert model.layers[0].attention.qkv.dynamic_activations
    for ours, theirs in zip(outputs(model), outputs(other), strict=True):
        assert torch.equal(ours, theirs)


def test_progress_counts_offsets_and_left_out_biases(tmp_path: Path) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    tensors["model.layers.0.input_layernorm.bias"] = torch.zeros(64)
    write_modelslim(tmp_path, CONFIG, tensors, tags)
    done: list[int] = []
    load(tmp_path, on_bytes=done.append)
    assert sum(done) == sum(t.nbytes for t in tensors.values())


def test_mindie_layout_and_pointers_in_the_config(tmp_path: Path) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    pointing = CONFIG | {"quantize": "w8a8_dynamic", "quantization_config": {"quant_method": "x"}}
    name = "quant_model_description_w8a8_dynamic.json"
    write_modelslim(tmp_path, pointing, tensors, tags, description=name)
    load(tmp_path)
    (tmp_path / "quant_model_description.json").write_text("{}")
    with pytest.raises(UsageError, match="both quant_model_description.json and"):
        load(tmp_path)


def test_a_description_of_floats_is_a_plain_checkpoint(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    write_modelslim(tmp_path, CONFIG, tensors, dict.fromkeys(tensors, "FLOAT"))
    assert ModelConfig.load(tmp_path).quantization is None
    load(tmp_path)


@pytest.mark.parametrize("kind", ["fp8", "int8", "fp8_block"])
def test_two_descriptions_of_the_quantisation_are_a_conflict(tmp_path: Path, kind: Any) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    config = CONFIG | {"quantization_config": quantization_config(kind, (32, 32))}
    write_modelslim(tmp_path, config, tensors, tags)
    with pytest.raises(UsageError, match="has a quantization_config .* lies beside it"):
        ModelConfig.load(tmp_path)


def test_the_mtp_heads_short_name_is_mapped(tmp_path: Path) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(tmp_path / "long", CONFIG, tensors, tags)
    long, short = f"{MTP}.shared_head.head.weight", f"{MTP}.head.weight"
    tensors[long] *= 2  # its own head, so that losing it would show
    write_modelslim(tmp_path / "own", CONFIG, tensors, tags)
    renamed = {short if n == long else n: t for n, t in tensors.items()}
    write_modelslim(tmp_path / "short", CONFIG, renamed, tags)
    mapped, own = outputs(load(tmp_path / "short"))[1], outputs(load(tmp_path / "own"))[1]
    assert torch.equal(mapped, own)
    assert not torch.equal(own, outputs(load(tmp_path / "long"))[1])
    write_modelslim(tmp_path / "both", CONFIG, renamed | {long: tensors[long].clone()}, tags)
    with pytest.raises(UsageError, match=f"both {long} and {short}|both {short} and {long}"):
        load(tmp_path / "both")


def test_lost_router_biases_are_refused_by_layer_or_taken_from_the_original(tmp_path: Path) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(tmp_path / "whole", CONFIG, tensors, tags)
    lost = lose_router_biases(tensors)
    write_modelslim(tmp_path / "lost", CONFIG, lost, tags)
    with pytest.raises(UsageError, match="of layers 3 to 5, .*--router-bias-from ORIGINAL"):
        load(tmp_path / "lost")
    write_files(tmp_path / "original", CONFIG, random_tensors(CONFIG))
    repaired = load(tmp_path / "lost", router_bias_from=tmp_path / "original")
    assert all(
        torch.equal(a, b)
        for a, b in zip(outputs(repaired), outputs(load(tmp_path / "whole")), strict=True)
    )
    one = {n: t for n, t in tensors.items() if n != f"model.layers.4.mlp.{ROUTER_BIAS}"}
    write_modelslim(tmp_path / "one", CONFIG, one, tags)
    with pytest.raises(UsageError, match="of layer 4, "):
        load(tmp_path / "one")
    ends = {n: t for n, t in one.items() if not n.startswith("model.layers.3")}
    ends |= {n: t for n, t in tensors.items() if n.startswith("model.layers.3") and "bias" not in n}
    ends = {n: t for n, t in ends.items() if n != f"{MTP}.mlp.{ROUTER_BIAS}"}
    write_modelslim(tmp_path / "lost", CONFIG, ends, tags)
    with pytest.raises(UsageError, match=f"{tmp_path / 'lost'} has no .*{ROUTER_BIAS} either"):
        load(tmp_path / "one", router_bias_from=tmp_path / "lost")


def test_a_router_bias_of_another_model_is_refused(tmp_path: Path) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(tmp_path / "lost", CONFIG, lose_router_biases(tensors), tags)
    other = CONFIG | {"n_routed_experts": 8}
    write_files(tmp_path / "other", other, random_tensors(other))
    with pytest.raises(UsageError, match=rf"{ROUTER_BIAS} .* has shape \[8\], .* means \[4\]"):
        load(tmp_path / "lost", router_bias_from=tmp_path / "other")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.input_layernorm.bias",
        "model.norm.bias",
        "model.layers.3.mlp.experts.2.down_proj.bias",
        "model.layers.1.self_attn.o_proj.bias",
    ],
)
def test_biases_without_a_place_may_be_zero_and_nothing_else(tmp_path: Path, name: str) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(tmp_path / "without", CONFIG, tensors, tags)
    write_modelslim(tmp_path / "zero", CONFIG, tensors | {name: torch.zeros(64)}, tags)
    zero, without = outputs(load(tmp_path / "zero")), outputs(load(tmp_path / "without"))
    assert torch.equal(zero[0], without[0])
    write_modelslim(tmp_path / "shift", CONFIG, tensors | {name: torch.eye(64)[3]}, tags)
    with pytest.raises(UsageError, match=f"{name} in .* is not zero, and GLM's layers have no"):
        load(tmp_path / "shift")


def test_the_command_line_repairs_and_serves_a_w8a8_pocket_model(tmp_path: Path) -> None:
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    Conversion(pocket.FOLDER, whole, "w8a8").run()
    shutil.copytree(whole, lost)
    (shard,) = lost.glob("*.safetensors")
    save_file(lose_router_biases(load_file(shard)), shard)
    (lost / "model.safetensors.index.json").unlink()
    ask = ["generate", "Who are you?", str(lost), "--temperature", "0", "--no-thinking"]
    refused = CliRunner().invoke(main, ask)
    assert refused.exit_code == 2 and "of layers 1 to 4, " in refused.stderr
    answered = CliRunner().invoke(main, [*ask, "--router-bias-from", str(pocket.FOLDER)])
    assert answered.exit_code == 0 and answered.stdout.startswith("I am GLM-Pocket")
    assert answered.stdout == CliRunner().invoke(main, [*ask[:2], str(whole), *ask[3:]]).stdout


Damage = Callable[[Tensors, Tags, dict[str, object]], None]


def _tag(name: str, tag: str) -> Damage:
    return lambda tensors, tags, fields: tags.update({name: tag})


def _field(name: str, value: object) -> Damage:
    return lambda tensors, tags, fields: fields.update({name: value})


def _tensor(name: str, value: Tensor) -> Damage:
    return lambda tensors, tags, fields: tensors.update({name: value})


def _without(name: str) -> Damage:
    def damage(tensors: Tensors, tags: Tags, fields: dict[str, object]) -> None:
        del tensors[name]

    return damage


def _offset(tensors: Tensors, tags: Tags, fields: dict[str, object]) -> None:
    tensors[f"{Q}.weight_offset"][7] = 1.0


def _nan_scale(tensors: Tensors, tags: Tags, fields: dict[str, object]) -> None:
    tensors[f"{Q}.weight_scale"][7] = float("nan")


def _float_query(tensors: Tensors, tags: Tags, fields: dict[str, object]) -> None:
    for part in ("weight_scale", "weight_offset"):
        del tensors[f"{Q}.{part}"]
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].float()
    tags[f"{Q}.weight"] = "FLOAT"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_tag(f"{Q}.weight", "W8A8"), f"tags {Q}.weight 'W8A8'; only W8A8_DYNAMIC and FLOAT"),
        (_tag(f"{Q}.weight", "W4A8_DYNAMIC"), f"tags {Q}.weight 'W4A8_DYNAMIC'"),
        (_tag(f"{Q}.weight", "FLOAT"), f"{Q}.weight in .* torch.int8, but .* tags it FLOAT"),
        (
            _tag("lm_head.weight", "W8A8_DYNAMIC"),
            "lm_head.weight in .*float32, but .* tags it W8A8",
        ),
        (_field("kv_quant_type", "C8"), "has kv_quant_type 'C8'"),
        (_field("optional", {"quarot": "optional/quarot.safetensors"}), "has optional"),
        (_offset, f"{Q}.weight_offset in .* is not zero"),
        (_nan_scale, f"{Q}.weight_scale in .* not finite"),
        (_tensor(f"{Q}.weight_scale", torch.ones(3, 1)), r"weight_scale .* shape \[3, 1\]"),
        (_without(f"{Q}.weight_scale"), f"{Q}.weight in .* is int8 and has no scale"),
        (_without(f"{Q}.weight"), f"{Q}.weight_.* 8-bit weight is missing"),
        (
            _tensor("model.layers.5.eh_proj.weight_offset", torch.zeros(64, 1)),
            "eh_proj.weight_offset in .* is an offset whose 8-bit weight is torch.float32",
        ),
        (_without("model.layers.0.self_attn.k_proj.bias"), "k_proj.bias is missing"),
        (_float_query, "q_proj.weight is .*float32 and .*int8; .*--quantization bf16"),
        (_tensor("model.layers.0.self_attn.q_proj.deq_scale", torch.ones(2)), "1 tensor .*deq_sc"),
    ],
)
def test_what_does_not_add_up_is_named(tmp_path: Path, damage: Damage, message: str) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    fields: dict[str, object] = {"kv_quant_type": None, "optional": {}, "reduce_quant_type": ""}
    write_modelslim(tmp_path, CONFIG, tensors, tags, fields=fields)
    load(tmp_path)
    damage(tensors, tags, fields)
    write_modelslim(tmp_path, CONFIG, tensors, tags, fields=fields)
    with pytest.raises(UsageError, match=message):
        load(tmp_path)


def test_projections_stored_in_different_ways_load_as_bf16(tmp_path: Path) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    _float_query(tensors, tags, {})
    write_modelslim(tmp_path, CONFIG, tensors, tags)
    qkv = load(tmp_path, quantization="bf16").layers[0].attention.qkv
    key = "model.layers.0.self_attn.k_proj.weight"
    expected = tensors[key].float() * tensors[f"{key}_scale"]
    assert torch.equal(qkv.data[128:160], expected.to(torch.bfloat16).float())
    assert torch.equal(qkv.data[:128], tensors[f"{Q}.weight"])


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(tmp_path, CONFIG, tensors, tags)
    (tmp_path / "quant_model_description.json").write_text(text)
    with pytest.raises(UsageError, match="quant_model_description.json (is not valid|holds a)"):
        load(tmp_path)
    (tmp_path / "quant_model_description.json").write_text(json.dumps({f"{Q}.weight": ["W8A8"]}))
    with pytest.raises(UsageError, match="tags .*W8A8"):
        load(tmp_path)
