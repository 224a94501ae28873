"""Whole decoder layers and the pocket model, for those who bring more than single ops."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from glm_portable import pocket
from glm_portable.backends import reference
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Layer, Model, Rotary
from glm_portable.ops import KVCache, Ops, Step
from glm_portable.tasks import generate
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify.cases.data import Source
from glm_portable.verify.metrics import FLOOR, K
from glm_portable.verify.suite.artefact.entry import Entry, limits_of, narrow
from glm_portable.verify.watch import Watched

DTYPES = (torch.bfloat16, torch.float64)
TOKENS, SLOTS, TOP = 24, 16, 64
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "torch_dtype": "bfloat16",
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 176, "num_hidden_layers": 2,
    "num_attention_heads": 12, "num_key_value_heads": 1, "head_dim": 32,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1000000,
    "partial_rotary_factor": 0.5, "attention_bias": True, "hidden_act": "silu",
    "first_k_dense_replace": 1, "moe_intermediate_size": 48, "n_routed_experts": 16,
    "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
    "eos_token_id": [1], "pad_token_id": 0, "use_qk_norm": False, "routed_scaling_factor": 1.0,
}  # fmt: skip
GLM45 = SMALL | {"use_qk_norm": True, "routed_scaling_factor": 2.5}


def layer(name: str, config: dict[str, Any], index: int, seed: int) -> Entry:
    """One decoder layer: what it adds to the stream x of the first tokens of a sequence."""
    cfg, source = ModelConfig.from_dict(config), Source(seed << 8 | index)
    weights = {n: _drawn(source, n, shape) for n, shape in shapes(cfg, index)}
    x = source.normal(TOKENS, cfg.hidden_size, outliers=True).bfloat16()
    plain, true = (_run(config, weights, index, x, dtype) for dtype in DTYPES)
    judged = torch.ones(TOKENS, dtype=torch.bool)
    if plain.scores is not None and true.scores is not None:
        best = true.scores.topk(cfg.num_experts_per_tok + 1, dim=-1).values
        noise = (plain.scores - true.scores).abs().max()
        judged = best[:, -2] - best[:, -1] > 2 * K * noise
    expected = {"added": narrow(true.added), "judged": judged.to(torch.uint8)}
    question = {
        "subject": "layer", "name": name, "dtype": "bfloat16", "exact": False,
        "attributes": {"config": config, "layer": index, "positions": list(range(TOKENS))},
    }  # fmt: skip
    limits = {"added": limits_of(plain.added[judged], true.added[judged])}
    tensors = {"inputs": {"x": x, **weights}, "expected": expected}
    return Entry(f"layer-{name}", tensors, question, limits)


@dataclass(frozen=True)
class _Ran:
    """scores: what the router chooses by, in float64 from its own input; None without a router."""

    added: Tensor
    scores: Tensor | None


def _run(
    config: dict[str, Any], weights: dict[str, Tensor], index: int, x: Tensor, dtype: torch.dtype
) -> _Ran:
    cfg, watched = ModelConfig.from_dict(config), Watched(cast(Ops, reference))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(weights, Path(folder) / "model.safetensors")
        checkpoint = Checkpoint(Path(folder), cfg, dtype=dtype)
        block = Layer(cfg, cast(Ops, watched), checkpoint, index)
    step = Step.build([(0, TOKENS, [2, 1])], SLOTS, CPU)
    cache = KVCache.allocate(cfg, 3, SLOTS, dtype, CPU)
    out, residual = block(x.to(dtype), None, Rotary.at(step.positions_T, cfg, dtype), cache, step)
    added = (out.double() + residual.double() - x.double()).to(dtype)
    if block.moe is None:
        return _Ran(added, None)
    logits = watched.routings[-1].x_TD.double() @ block.moe.gate.double().T
    return _Ran(added, logits.sigmoid() + block.moe.bias.double())


def shapes(cfg: ModelConfig, index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a layer, by their names in a checkpoint."""
    prefix, d, size = f"model.layers.{index}", cfg.hidden_size, cfg.head_dim
    q, kv = cfg.num_attention_heads * size, cfg.num_key_value_heads * size
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{prefix}.{norm}.weight", (d,)
    for projection, width in (("q", q), ("k", kv), ("v", kv)):
        yield f"{prefix}.self_attn.{projection}_proj.weight", (width, d)
        yield f"{prefix}.self_attn.{projection}_proj.bias", (width,)
    yield f"{prefix}.self_attn.o_proj.weight", (d, q)
    if cfg.use_qk_norm:
        yield f"{prefix}.self_attn.q_norm.weight", (size,)
        yield f"{prefix}.self_attn.k_norm.weight", (size,)
    if index < cfg.first_k_dense_replace:
        yield from _mlp(f"{prefix}.mlp", d, cfg.intermediate_size)
        return
    yield f"{prefix}.mlp.gate.weight", (cfg.n_routed_experts, d)
    yield f"{prefix}.mlp.gate.e_score_correction_bias", (cfg.n_routed_experts,)
    for e in range(cfg.n_routed_experts):
        yield from _mlp(f"{prefix}.mlp.experts.{e}", d, cfg.moe_intermediate_size)
    yield from _mlp(f"{prefix}.mlp.shared_experts", d, cfg.moe_intermediate_size)


def _mlp(prefix: str, d: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.gate_proj.weight", (width, d)
    yield f"{prefix}.up_proj.weight", (width, d)
    yield f"{prefix}.down_proj.weight", (d, width)


def _drawn(source: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    """In BF16, but for the router's bias: around 7 in float32, as GLM's is."""
    if name.endswith("e_score_correction_bias"):
        return source.uniform(6.8, 7.1, *shape)
    if name.endswith("norm.weight"):
        return (1 + source.normal(*shape) / 8).bfloat16()
    if name.endswith(".bias"):
        return (source.normal(*shape) / 8).bfloat16()
    return source.weight(*shape).bfloat16()


def pocket_model(seed: int) -> Entry:
    """The embedded model on a conversation it was trained for: the likeliest tokens after each."""
    cfg = ModelConfig.load(pocket.FOLDER)
    text = str(generate(seed, 0).messages) * 2
    ids = torch.tensor(Tokenizer.load(pocket.FOLDER, cfg).encode(text)[:TOKENS])
    plain, true = (_logprobs(cfg, ids, dtype) for dtype in DTYPES)
    best = true.topk(TOP, dim=-1)
    kl = (true.exp() * (true - plain)).sum(-1).mean().item()
    expected = {"ids": best.indices, "logprobs": narrow(best.values)}
    weights = pocket.FOLDER / "model.safetensors"
    question = {
        "subject": "model", "name": "pocket", "dtype": "bfloat16", "exact": False,
        "attributes": {
            "weights": "glm_portable/pocket/model.safetensors",
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "config": json.loads((pocket.FOLDER / "config.json").read_text(encoding="utf-8")),
        },
    }  # fmt: skip
    limits = {
        "logits": {"dtype": "float32", "plain": {"kl": kl}, "limits": {"kl": K**2 * kl + FLOOR}}
    }
    return Entry("model-pocket", {"inputs": {"ids": ids}, "expected": expected}, question, limits)


def _logprobs(cfg: ModelConfig, ids: Tensor, dtype: torch.dtype) -> Tensor:
    model = Model(cfg, cast(Ops, reference), Checkpoint(pocket.FOLDER, cfg, dtype=dtype))
    step = Step.build([(0, len(ids), [2, 1])], SLOTS, CPU)
    hidden = model.forward(ids, step, model.allocate(3, SLOTS))
    return model.logits(hidden).double().log_softmax(-1)


MODELS: tuple[Callable[[int], Entry], ...] = (
    partial(layer, "dense", SMALL, 0),
    partial(layer, "air", SMALL, 1),
    partial(layer, "glm45", GLM45, 1),
    pocket_model,
)
