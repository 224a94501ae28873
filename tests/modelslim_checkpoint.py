"""Small checkpoints as msmodelslim writes them: names, dtypes, shapes and description.

Seen of msmodelslim 26.1.0 on a GLM-4.7 of three layers: `quant_model_weights.safetensors`, in
shards with an index or in one file without; int8 `weight` [out, in], float32 `weight_scale` and
`weight_offset` [out, 1], the biases of quantised projections in float32, and no router bias.
"""

import json
import re
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.random_checkpoint import Config, random_tensors

Recipe = Literal["lab_practice", "guide"]
Tensors = dict[str, Tensor]
Tags = dict[str, str]

PROJECTION = re.compile(
    r"model\.layers\.(\d+)\.(self_attn\.\w_proj|mlp\.experts\.\d+\.\w+_proj)\.(weight|bias)"
)
ROUTER_BIAS = "gate.e_score_correction_bias"


def is_quantised(name: str, config: Config, recipe: Recipe) -> bool:
    """lab_practice: attention and routed experts of the main layers. guide: o_proj stays float
    everywhere, and so do the down projections of layers 0 to 2."""
    found = PROJECTION.fullmatch(name)
    if found is None or int(found[1]) >= config["num_hidden_layers"]:
        return False
    if recipe == "guide":
        return not ("o_proj" in name or (int(found[1]) <= 2 and "down_proj" in name))
    return True


def modelslim_tensors(
    config: Config, *, recipe: Recipe = "lab_practice", seed: int = 0, mtp_copies: bool = True
) -> tuple[Tensors, Tags]:
    """The tensors, with their router biases, and the description's tags."""
    tensors: Tensors = {}
    tags: Tags = {}
    for name, value in random_tensors(config, seed=seed, mtp_copies=mtp_copies).items():
        quantised = is_quantised(name, config, recipe)
        parts = {name: value}
        if quantised and name.endswith(".bias"):
            parts = {name: value.float()}
        elif quantised:
            scale = value.float().abs().max(1, keepdim=True).values / 127
            data = (value.float() / scale).round().clamp(-128, 127).to(torch.int8)
            offset = torch.zeros_like(scale)
            parts = {name: data, f"{name}_scale": scale, f"{name}_offset": offset}
        tensors |= parts
        tags |= dict.fromkeys(parts, "W8A8_DYNAMIC" if quantised else "FLOAT")
    return tensors, tags


def write_modelslim(
    folder: Path,
    config: Config,
    tensors: Tensors,
    tags: Tags,
    *,
    shards: int = 1,
    index: bool = True,
    description: str = "quant_model_description.json",
    fields: dict[str, object] | None = None,
) -> None:
    """Write everything; the index only when there are several shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    about = {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0", "group_size": 0}
    about |= fields or {}
    (folder / description).write_text(json.dumps(about | tags), encoding="utf-8")
    weight_map: dict[str, str] = {}
    for i in range(shards):
        number = f"-{i + 1:05}-of-{shards:05}" if shards > 1 else ""
        file = f"quant_model_weights{number}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[i::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index and shards > 1:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "quant_model_weights.safetensors.index.json").write_text(text, encoding="utf-8")


def lose_router_biases(tensors: Tensors) -> Tensors:
    """What msmodelslim writes: transformers keeps these as buffers, which it does not save."""
    return {name: t for name, t in tensors.items() if not name.endswith(ROUTER_BIAS)}
