"""Random GLM-4.5 checkpoints by seed, with the names, shapes and types of the published ones.

Weights are N(0, 1 / fan_in), so activations stay near 1, and the head has a gain of 4, so the
logits have clear winners and two implementations can be compared token by token.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glm_portable.errors import UsageError

Config = dict[str, Any]

_SMALL: Config = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "torch_dtype": "bfloat16",
    "vocab_size": 1536,
    "hidden_size": 256,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "hidden_act": "silu",
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "eos_token_id": [1533, 1534, 1535],
}

CONFIGS: dict[str, Config] = {
    "glm-4.5-like": _SMALL
    | {
        "num_hidden_layers": 5,
        "first_k_dense_replace": 3,
        "num_attention_heads": 12,
        "num_key_value_heads": 1,
        "intermediate_size": 384,
        "moe_intermediate_size": 192,
        "n_routed_experts": 32,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
    },
    "air-like": _SMALL
    | {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 352,
        "moe_intermediate_size": 176,
        "n_routed_experts": 16,
        "routed_scaling_factor": 1.0,
        "use_qk_norm": False,
    },
}
"""What GLM-4.5 and Air differ in, small enough for seconds; expert widths are those of TP8."""

BIAS_RANGE = (6.8, 7.1)
"""Of trained router biases: a large offset with a small spread, which BF16 does not resolve."""


def small_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint of one of CONFIGS into a folder. GLM-4.5's has no MTP copies, as 4.6."""
    if name not in CONFIGS:
        raise UsageError(f"there is no small config {name!r}; use {' or '.join(CONFIGS)}.")
    config = CONFIGS[name]
    copies = name == "air-like"
    tensors = random_tensors(config, seed=seed, mtp_copies=copies, bias_range=BIAS_RANGE)
    write_files(folder, config, tensors)
    return folder


def write_files(folder: Path, config: Config, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """config.json plus model.safetensors, or `shards` files and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def random_tensors(
    config: Config,
    *,
    seed: int = 0,
    mtp_copies: bool = True,
    bias_range: tuple[float, float] = (-0.1, 0.1),
) -> dict[str, Tensor]:
    """Every tensor of the checkpoint before quantisation, in the config's dtype."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, config["torch_dtype"])
    tensors = {}
    for name, shape in tensor_shapes(config):
        value = torch.randn(shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            low, high = bias_range
            tensors[name] = low + (high - low) * torch.rand(shape, generator=generator)
        else:
            tensors[name] = _scaled(name, value).to(dtype)
    if config["num_nextn_predict_layers"] and mtp_copies:
        mtp = f"model.layers.{config['num_hidden_layers']}"
        embed = tensors["model.embed_tokens.weight"]
        tensors[f"{mtp}.embed_tokens.weight"] = embed.clone()
        tensors[f"{mtp}.shared_head.head.weight"] = tensors.get("lm_head.weight", embed).clone()
    return tensors


def _scaled(name: str, value: Tensor) -> Tensor:
    if name.endswith("norm.weight"):
        return 1 + 0.1 * value
    if name.endswith(".bias"):
        return 0.1 * value
    if name.endswith("embed_tokens.weight"):
        return value
    gain = 4.0 if name == "lm_head.weight" else 1.0
    return value * (gain / math.sqrt(value.shape[-1]))


def tensor_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes on disk of a plain checkpoint, without the MTP layer's copies."""
    v, d = config["vocab_size"], config["hidden_size"]
    main, mtp = config["num_hidden_layers"], config["num_nextn_predict_layers"]
    yield "model.embed_tokens.weight", (v, d)
    for i in range(main + mtp):
        yield from _layer_shapes(config, i)
    yield "model.norm.weight", (d,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (v, d)
    for i in range(main, main + mtp):
        for norm in ("enorm", "hnorm", "shared_head.norm"):
            yield f"model.layers.{i}.{norm}.weight", (d,)
        yield f"model.layers.{i}.eh_proj.weight", (d, 2 * d)


def _layer_shapes(config: Config, index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix, d, size = f"model.layers.{index}", config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield f"{prefix}.input_layernorm.weight", (d,)
    for projection, width in (("q", q), ("k", kv), ("v", kv)):
        yield f"{prefix}.self_attn.{projection}_proj.weight", (width, d)
        if config["attention_bias"]:
            yield f"{prefix}.self_attn.{projection}_proj.bias", (width,)
    yield f"{prefix}.self_attn.o_proj.weight", (d, q)
    if config["use_qk_norm"]:
        yield f"{prefix}.self_attn.q_norm.weight", (size,)
        yield f"{prefix}.self_attn.k_norm.weight", (size,)
    yield f"{prefix}.post_attention_layernorm.weight", (d,)
    if index < config["first_k_dense_replace"]:
        yield from _mlp_shapes(f"{prefix}.mlp", d, config["intermediate_size"])
        return
    count, width = config["n_routed_experts"], config["moe_intermediate_size"]
    yield f"{prefix}.mlp.gate.weight", (count, d)
    yield f"{prefix}.mlp.gate.e_score_correction_bias", (count,)
    for e in range(count):
        yield from _mlp_shapes(f"{prefix}.mlp.experts.{e}", d, width)
    shared = width * config["n_shared_experts"]
    yield from _mlp_shapes(f"{prefix}.mlp.shared_experts", d, shared)


def _mlp_shapes(prefix: str, d: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.gate_proj.weight", (width, d)
    yield f"{prefix}.up_proj.weight", (width, d)
    yield f"{prefix}.down_proj.weight", (d, width)
