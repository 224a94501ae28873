"""Tiny random GLM-4.5 checkpoints with the names, shapes and dtypes of the published ones.

Weights are N(0, 1 / fan_in), so activations stay near 1, and the head has a gain of 4, so the
logits have clear winners and two implementations can be compared token by token.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from glm_portable.verify.generated import Config as Config
from glm_portable.verify.generated import random_tensors as random_tensors
from glm_portable.verify.generated import tensor_shapes as tensor_shapes
from glm_portable.verify.generated import write_files as write_files

Quantize = Literal["fp8", "fp8_block", "int8"]

FP8 = torch.float8_e4m3fn


def small_config(**overrides: Any) -> Config:
    """A `config.json` like GLM-4.5-Air's, in float32 and three layers deep, plus one MTP layer."""
    config: Config = {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "torch_dtype": "float32",
        "vocab_size": 257,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "use_qk_norm": False,
        "hidden_act": "silu",
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 24,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": False,
        "eos_token_id": [250, 251, 252],
        "pad_token_id": 250,
    }
    return config | overrides


def write_checkpoint(
    folder: Path,
    config: Config,
    *,
    seed: int = 0,
    mtp_copies: bool = True,
    quantize: Quantize | None = None,
    block: tuple[int, int] = (32, 32),
    shards: int = 1,
    bias_range: tuple[float, float] = (-0.1, 0.1),
) -> dict[str, Tensor]:
    """Write config.json and the weights; returns every tensor as it is on disk.

    mtp_copies: whether the MTP layer repeats embedding and head (GLM-4.5, 4.7) or not (4.6).
    block: rows and columns of one scale of "fp8_block". bias_range: e_score_correction_bias.
    """
    tensors = random_tensors(config, seed=seed, mtp_copies=mtp_copies, bias_range=bias_range)
    if quantize is not None:
        tensors = quantize_tensors(tensors, quantize, block)
        config = config | {"quantization_config": quantization_config(quantize, block)}
    write_files(folder, config, tensors, shards)
    return tensors


def quantization_config(kind: Quantize, block: tuple[int, int]) -> Config:
    """What the published FP8 files say (without the ignore list), or third-party block files."""
    if kind == "fp8_block":
        size = list(block)
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": size}
    number = {"fp8": "float", "int8": "int"}[kind]
    weights = {"type": number, "num_bits": 8, "strategy": "channel", "symmetric": True}
    activations = {"type": number, "num_bits": 8, "strategy": "token", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": weights | {"dynamic": False},
        "input_activations": activations | {"dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": f"{number}-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def quantize_tensors(
    tensors: dict[str, Tensor], kind: Quantize, block: tuple[int, int] = (32, 32)
) -> dict[str, Tensor]:
    """Quantise what the published FP8 files do: projections, experts and the MTP layer's head."""
    result = {}
    for name, value in tensors.items():
        if not name.endswith(("_proj.weight", "shared_head.head.weight")) or "eh_proj" in name:
            result[name] = value
            continue
        if kind == "fp8_block":
            result[name], scale = _quantize_blocks(value, block)
            result[f"{name}_scale_inv"] = scale
        else:
            dtype = FP8 if kind == "fp8" else torch.int8
            result[name], result[f"{name}_scale"] = _quantize_rows(value, dtype)
    return result


def dequantize_tensors(
    tensors: dict[str, Tensor], block: tuple[int, int] = (32, 32)
) -> dict[str, Tensor]:
    """The float32 checkpoint that a quantised one stands for, to compare with."""
    result = {}
    for name, value in tensors.items():
        if name.endswith((".weight_scale", ".weight_scale_inv")):
            continue
        scale = tensors.get(f"{name}_scale")
        if f"{name}_scale_inv" in tensors:
            scale = _spread(tensors[f"{name}_scale_inv"], block, value)
        result[name] = value.float() if scale is None else value.float() * scale
    return result


def _quantize_rows(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    top, rounding = _number_format(dtype)
    scale = value.float().abs().amax(1, keepdim=True) / top
    return rounding(value.float() / scale), scale


def _quantize_blocks(value: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    top, rounding = _number_format(FP8)
    bands = torch.split(value.float(), block[0])
    scale = torch.tensor(
        [[b.abs().max() / top for b in torch.split(x, block[1], 1)] for x in bands]
    )
    return rounding(value.float() / _spread(scale, block, value)), scale


def _number_format(dtype: torch.dtype) -> tuple[float, Callable[[Tensor], Tensor]]:
    if dtype == FP8:
        return torch.finfo(FP8).max, lambda x: x.to(FP8)
    return 127.0, lambda x: x.round().to(torch.int8)


def _spread(scale: Tensor, block: tuple[int, int], value: Tensor) -> Tensor:
    rows, columns = value.shape
    wide = scale.repeat_interleave(block[0], 0)[:rows]
    return wide.repeat_interleave(block[1], 1)[:, :columns]
