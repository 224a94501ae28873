"""Writes a trained network as a checkpoint folder, and compares that with the network."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.glm import GLM
from tools.pocket_training.network import Network

Tensors = dict[str, Tensor]
POCKET = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "partial_rotary_factor": 0.5,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 8192,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 1280,
}
"""config.json of the pocket model, without the token ids that its tokenizer decides."""


def to_disk(tensors: Tensors) -> Tensors:
    """A network's tensors as the published checkpoints hold them: an expert a tensor, in BF16.

    The router's bias stays float32: BF16 has no room for its spread beside its offset.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            found.update(_experts(name.rsplit(".", 1)[0], name.endswith("gate_up_proj"), tensor))
        elif name.endswith("e_score_correction_bias"):
            found[name] = tensor.float()
        else:
            found[name] = tensor.bfloat16()
    return {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}


def _experts(prefix: str, gate_up: bool, stacked: Tensor) -> Tensors:
    names = ["gate_proj", "up_proj"] if gate_up else ["down_proj"]
    return {
        f"{prefix}.{expert}.{name}.weight": part.bfloat16()
        for expert, tensor in enumerate(stacked)
        for name, part in zip(names, tensor.chunk(len(names)), strict=True)
    }


def from_disk(tensors: Tensors, config: ModelConfig) -> Tensors:
    """The inverse of `to_disk`, in float32."""
    wide = {name: tensor.float() for name, tensor in tensors.items() if ".experts." not in name}
    first, last = config.first_k_dense_replace, config.num_hidden_layers
    for prefix in (f"model.layers.{layer}.mlp.experts" for layer in range(first, last + 1)):
        experts = [
            {n: tensors[f"{prefix}.{e}.{n}.weight"] for n in ("gate_proj", "up_proj", "down_proj")}
            for e in range(config.n_routed_experts)
        ]
        gate_up = [torch.cat([expert["gate_proj"], expert["up_proj"]]) for expert in experts]
        wide[f"{prefix}.gate_up_proj"] = torch.stack(gate_up).float()
        wide[f"{prefix}.down_proj"] = torch.stack([e["down_proj"] for e in experts]).float()
    return wide


def export(tensors: Tensors, raw_config: dict[str, Any], folder: Path) -> None:
    """Write model.safetensors, config.json and generation_config.json."""
    save_file(to_disk(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    ids = {key: raw_config[key] for key in ("eos_token_id", "pad_token_id")}
    generation = {"_from_model_config": True, **ids}
    for name, content in (("config", raw_config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


@torch.no_grad()
def largest_difference(folder: Path, ids: list[int]) -> float:
    """Between the logits of the exported checkpoint and those of the network it came from.

    The network gets the weights as they were written, so only a wrong export or a difference in
    the architecture shows, next tokens and MTP alike. `ids` has at least three tokens.
    """
    glm = GLM.load(str(folder), backend="reference", dtype="float32")
    network = Network(ModelConfig.load(folder)).eval()
    disk = load_file(folder / "model.safetensors")
    network.load_state_dict(from_disk(disk, network.config))
    row = torch.tensor([ids])
    hidden = network.hidden(row)
    guess = network.mtp_hidden(hidden[:, :-1], row[:, 1:])
    following = (network.lm_head(hidden)[0] - glm.logits(ids)).abs().max()
    after = (network.lm_head(guess)[0] - glm.mtp_logits(ids)[: len(ids) - 1]).abs().max()
    return float(torch.maximum(following, after))
