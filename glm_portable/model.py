"""GLM-4.5, from token ids to logits: the file to read first.

The architecture of GLM-4.5, 4.5-Air, 4.6 and 4.7 (`Glm4MoeForCausalLM`): pre-norm decoder layers
of grouped-query attention with a partly rotated head, followed by a dense MLP in the first layers
and by a mixture of experts with a shared expert in the rest; then one extra layer that predicts
the token after next (MTP). Every arithmetic step is an op of `glm_portable/ops.py`, so this file is
the same on every chip. Each part pulls its weights from the checkpoint by their names on disk.

On several ranks the checkpoint gives each rank its part of a weight (`parallel.py` says which), and
the ranks' outputs are summed where `all_reduce` stands: once after attention, once after the MLP.

Shape letters in names are those of `ops.py`: T tokens, D hidden size, H query heads, G key/value
heads, C head size, E experts, K experts per token, F expert width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.digest import Digests, digests
from glm_portable.ops import KVCache, Ops, Step, Weight
from glm_portable.parallel import Parallel


@dataclass
class Trace:
    """What a forward pass leaves behind when it is asked to, for comparing backends.

    residuals: (T, D) per main layer, the residual stream as it enters the layer. last: as it
    leaves the last one.
    routed: layer -> (weights_TK, experts_TK) of its router.
    """

    residuals: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None
    routed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rotary:
    """cos and sin of every token's rotation angles, (T, rotary_dim), each angle twice."""

    cos_TC: Tensor
    sin_TC: Tensor

    @classmethod
    def at(cls, positions_T: Tensor, config: ModelConfig, dtype: torch.dtype) -> "Rotary":
        """Angle i of a position is position * theta^(-2i / rotary_dim), at least in float32."""
        wide = torch.promote_types(dtype, torch.float32)
        even = torch.arange(0, config.rotary_dim, 2, dtype=wide, device=positions_T.device)
        angles = positions_T.to(wide).unsqueeze(1) * config.rope_theta ** (
            -even / config.rotary_dim
        )
        angles = torch.cat([angles, angles], dim=-1)
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))


class Attention:
    """Grouped-query attention: 12 query heads share one key/value head in the real models."""

    def __init__(self, config: ModelConfig, ops: Ops, weights: Checkpoint, prefix: str) -> None:
        self.ops, self.eps, self.size = ops, config.rms_norm_eps, config.head_dim
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        widths = [q_width, kv_width, kv_width]
        local = weights.parallel.local(config)
        heads = (local.num_attention_heads, local.num_key_value_heads, local.num_key_value_heads)
        self.widths = [n * self.size for n in heads]
        projections = [f"{prefix}.{p}_proj" for p in "qkv"]
        self.qkv = ops.pack(weights.weight(projections, widths, config.hidden_size))
        self.qkv_bias = None
        if config.attention_bias:
            biases = zip(projections, widths, strict=True)
            self.qkv_bias = torch.cat([weights.tensor(f"{p}.bias", (n,)) for p, n in biases])
        self.out = ops.pack(weights.weight([f"{prefix}.o_proj"], [config.hidden_size], q_width))
        self.kv_scales = weights.kv_scales(prefix)
        self.q_norm = self.k_norm = None
        if config.use_qk_norm:
            self.q_norm = weights.tensor(f"{prefix}.q_norm.weight", (self.size,))
            self.k_norm = weights.tensor(f"{prefix}.k_norm.weight", (self.size,))

    def __call__(self, x_TD: Tensor, rotary: Rotary, cache: KVCache, step: Step) -> Tensor:
        qkv = self.ops.linear(x_TD, self.qkv, self.qkv_bias)
        q_THC, k_TGC, v_TGC = (
            x.view(len(x), -1, self.size) for x in torch.split(qkv, self.widths, dim=-1)
        )
        q_THC = self.ops.rope_store(
            q_THC, k_TGC, v_TGC, rotary.cos_TC, rotary.sin_TC, cache, step,
            self.q_norm, self.k_norm, self.eps,
        )  # fmt: skip
        y_THC = self.ops.attend(q_THC, cache, step, self.size**-0.5)
        return self.ops.linear(y_THC.flatten(1), self.out)


class MLP:
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(
        self, config: ModelConfig, ops: Ops, weights: Checkpoint, prefix: str, width: int
    ) -> None:
        self.ops = ops
        d = config.hidden_size
        gate_up = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
        self.gate_up = ops.pack(weights.weight(gate_up, [width, width], d))
        self.down = ops.pack(weights.weight([f"{prefix}.down_proj"], [d], width))

    def __call__(self, x_TD: Tensor) -> Tensor:
        hidden = self.ops.silu_mul(self.ops.linear(x_TD, self.gate_up), self.down)
        return self.ops.linear(hidden, self.down)


class MoE:
    """Routed experts, chosen per token, plus a shared expert that every token passes unscaled."""

    def __init__(
        self, config: ModelConfig, ops: Ops, weights: Checkpoint, prefix: str, layer: int
    ) -> None:
        self.config, self.ops, self.layer = config, ops, layer
        self.first = weights.parallel.experts(config.n_routed_experts).start
        count, d, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        # The bias is a large offset with a tiny spread: rounded to BF16 it re-routes most tokens.
        wide = torch.promote_types(weights.dtype, torch.float32)
        self.gate = weights.tensor(f"{prefix}.gate.weight", (count, d), wide)
        self.bias = weights.tensor(f"{prefix}.gate.e_score_correction_bias", (count,), wide)
        gate_up = ("gate_proj", "up_proj")
        self.gate_up = ops.pack(weights.experts(f"{prefix}.experts", gate_up, count, width, d))
        self.down = ops.pack(weights.experts(f"{prefix}.experts", ("down_proj",), count, d, width))
        shared_width = width * config.n_shared_experts
        self.shared = MLP(config, ops, weights, f"{prefix}.shared_experts", shared_width)

    def __call__(self, x_TD: Tensor, trace: Trace | None) -> Tensor:
        weights_TK, experts_TK = self.ops.route(x_TD, self.gate, self.bias, self.config)
        if trace is not None:
            trace.routed[self.layer] = weights_TK, experts_TK
        if self.first:
            experts_TK = experts_TK - self.first  # others than this rank's are then out of range
        routed = self.ops.experts(x_TD, self.gate_up, self.down, weights_TK, experts_TK)
        return routed + self.shared(x_TD)


class Layer:
    """One decoder layer; hands on its output and the residual stream, summed in the next norm."""

    def __init__(self, config: ModelConfig, ops: Ops, weights: Checkpoint, index: int) -> None:
        self.ops, self.eps, self.parallel = ops, config.rms_norm_eps, weights.parallel
        prefix, d = f"model.layers.{index}", config.hidden_size
        self.input_norm = weights.tensor(f"{prefix}.input_layernorm.weight", (d,))
        self.attention = Attention(config, ops, weights, f"{prefix}.self_attn")
        self.post_norm = weights.tensor(f"{prefix}.post_attention_layernorm.weight", (d,))
        self.mlp: MLP | None = None
        self.moe: MoE | None = None
        if index < config.first_k_dense_replace:
            self.mlp = MLP(config, ops, weights, f"{prefix}.mlp", config.intermediate_size)
            self.feeds = self.mlp.gate_up
        else:
            self.moe = MoE(config, ops, weights, f"{prefix}.mlp", index)
            self.feeds = self.moe.gate_up

    def __call__(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        rotary: Rotary,
        cache: KVCache,
        step: Step,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        normed, residual = self.ops.rms_norm(
            x_TD, self.input_norm, self.eps, residual_TD, self.attention.qkv
        )
        if trace is not None:
            trace.residuals.append(residual)
        x_TD = self.parallel.all_reduce(self.attention(normed, rotary, cache, step))
        normed, residual = self.ops.rms_norm(x_TD, self.post_norm, self.eps, residual, self.feeds)
        if self.moe is not None:
            return self.parallel.all_reduce(self.moe(normed, trace)), residual
        assert self.mlp is not None
        return self.parallel.all_reduce(self.mlp(normed)), residual


class MTP:
    """Multi-token prediction: one more layer guesses token i + 2 from hidden i and token i + 1."""

    def __init__(
        self, config: ModelConfig, ops: Ops, weights: Checkpoint, embed_VD: Tensor, head: Weight
    ) -> None:
        self.ops, self.config, self.eps = ops, config, config.rms_norm_eps
        self.parallel = weights.parallel
        index, d = config.num_hidden_layers, config.hidden_size
        prefix = f"model.layers.{index}"
        self.embed = self._own_embed(weights, prefix, embed_VD)
        self.head = self._own_head(weights, prefix, embed_VD, head)
        self.enorm = weights.tensor(f"{prefix}.enorm.weight", (d,))
        self.hnorm = weights.tensor(f"{prefix}.hnorm.weight", (d,))
        self.eh_proj = ops.pack(weights.weight([f"{prefix}.eh_proj"], [d], 2 * d))
        self.layer = Layer(config, ops, weights, index)
        self.norm = weights.tensor(f"{prefix}.shared_head.norm.weight", (d,))

    def _own_embed(self, weights: Checkpoint, prefix: str, embed_VD: Tensor) -> Tensor:
        """GLM-4.6 has no embedding here and the others repeat the model's: keep one in memory."""
        name = f"{prefix}.embed_tokens.weight"
        if not weights.has(name):
            return embed_VD
        own = weights.tensor(name, (self.config.vocab_size, self.config.hidden_size))
        return embed_VD if torch.equal(own, embed_VD) else own

    def _own_head(self, weights: Checkpoint, prefix: str, embed_VD: Tensor, head: Weight) -> Weight:
        """As for the embedding; 8-bit files round this copy, so the model's serves too."""
        name = f"{prefix}.shared_head.head"
        if weights.is_quantised(name):
            weights.skip_linear(name)
        elif weights.has(f"{name}.weight"):
            v, d = self.config.vocab_size, self.config.hidden_size
            own = weights.weight([name], [v], d)
            tied = self.config.tie_word_embeddings
            model_head = embed_VD if tied else weights.tensor("lm_head.weight", (v, d))
            return head if torch.equal(own.data, model_head) else self.ops.pack(own)
        return head

    def __call__(self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, cache: KVCache) -> Tensor:
        """Hidden states after the layer's own norm, (T, D): the first of what `forward` returns."""
        return self.forward(next_ids_T, hidden_TD, step, cache)[0]

    def forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """Hidden states after the layer's own norm and before it, (T, D) each.

        next_ids_T: the token that follows each position; hidden_TD: the model's output there (or
        this layer's, when drafting further); step: that of hidden_TD. The layer's cache has a
        slot for each of them, and rotates by the position of the token that follows.
        """
        embedded = _embed(next_ids_T, self.embed, self.parallel)
        embedded, _ = self.ops.rms_norm(embedded, self.enorm, self.eps)
        hidden, _ = self.ops.rms_norm(hidden_TD, self.hnorm, self.eps)
        x = self.ops.linear(torch.cat([embedded, hidden], dim=-1), self.eh_proj)
        rotary = Rotary.at(step.positions_T + 1, self.config, x.dtype)
        x, residual = self.layer(x, None, rotary, cache, step)
        return self.ops.rms_norm(x, self.norm, self.eps, residual)


class Model:
    """A loaded model on one backend. Holds weights and no state: caches belong to the caller.

    kv_dtype: of the caches' pages; None is the model's own.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        weights: Checkpoint,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.ops, self.dtype = config, ops, weights.dtype
        self.kv_dtype = kv_dtype or weights.dtype
        self.parallel = weights.parallel
        v, d = config.vocab_size, config.hidden_size
        self.embed = weights.tensor("model.embed_tokens.weight", (v, d))
        self.layers = [Layer(config, ops, weights, i) for i in range(config.num_hidden_layers)]
        self.norm = weights.tensor("model.norm.weight", (d,))
        if config.tie_word_embeddings:
            self.head = ops.pack(Weight(self.embed, weights.dtype))
        else:
            self.head = ops.pack(weights.weight(["lm_head"], [v], d))
        self.mtp: MTP | None = None
        if has_mtp(config, weights):
            self.mtp = MTP(config, ops, weights, self.embed, self.head)
        cached = self.layers if self.mtp is None else [*self.layers, self.mtp.layer]
        self._kv_scales = [layer.attention.kv_scales for layer in cached]
        weights.finish()

    def allocate(self, pages: int, page_size: int) -> list[KVCache]:
        """A cache for each main layer and, last, one for the MTP layer if there is one."""
        local, device = self.parallel.local(self.config), self.ops.device
        return [
            KVCache.allocate(
                local, pages, page_size, self.kv_dtype, device, *self._in_pages(scales)
            )
            for scales in self._kv_scales
        ]

    @property
    def has_kv_scales(self) -> bool:
        """Whether the checkpoint was calibrated for FP8 pages."""
        return None not in self._kv_scales[: len(self.layers)]

    def _in_pages(self, scales: tuple[float, float] | None) -> tuple[float, float]:
        """Of a layer's FP8 pages, as calibrated or 1."""
        if self.kv_dtype.itemsize > 1 or scales is None:
            return 1.0, 1.0
        # FNUZ codes mean half of what the same codes of OCP mean, for which scales are calibrated.
        unit = 2.0 if self.kv_dtype == torch.float8_e4m3fnuz else 1.0
        return scales[0] * unit, scales[1] * unit

    def forward(
        self, ids_T: Tensor, step: Step, caches: Sequence[KVCache], trace: Trace | None = None
    ) -> Tensor:
        """Hidden states after the final norm, (T, D); keys and values go into the caches."""
        x, residual = _embed(ids_T, self.embed, self.parallel), None
        rotary = Rotary.at(step.positions_T, self.config, self.dtype)
        for layer, cache in zip(self.layers, caches[: len(self.layers)], strict=True):
            x, residual = layer(x, residual, rotary, cache, step, trace)
        normed, residual = self.ops.rms_norm(x, self.norm, self.config.rms_norm_eps, residual)
        if trace is not None:
            trace.last = residual
        return normed

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """(T, V), float32 at least; rows of the vocabulary beyond the tokenizer's are untrained."""
        return _logits(self.ops, hidden_TD, self.head, self.parallel)

    @property
    def has_mtp(self) -> bool:
        """Whether the checkpoint came with its MTP layer."""
        return self.mtp is not None

    def mtp_forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, caches: Sequence[KVCache]
    ) -> tuple[Tensor, Tensor]:
        """`MTP.forward` with its cache, the last of those that `allocate` returned."""
        assert self.mtp is not None
        return self.mtp.forward(next_ids_T, hidden_TD, step, caches[-1])

    def mtp_logits(self, hidden_TD: Tensor) -> Tensor:
        """As `logits`, of hidden states after the MTP layer's own norm."""
        assert self.mtp is not None
        return _logits(self.ops, hidden_TD, self.mtp.head, self.parallel)

    def digests(self, part: int) -> Digests:
        """Of this rank's weights in a part of the model: what is in no layer, each layer, the MTP.

        Nothing beyond the last part.
        """
        ends = {"embed": self.embed, "norm": self.norm, "head": self.head}
        parts: list[tuple[str, Any]] = [("", ends)]
        parts += [(f"layers[{i}]", layer) for i, layer in enumerate(self.layers)]
        parts += [] if self.mtp is None else [("mtp", self.mtp)]
        if part >= len(parts):
            return {}
        experts = len(self.parallel.experts(self.config.n_routed_experts))
        return digests(self.ops, *parts[part], (Attention, MLP, MoE, Layer, MTP), experts)


def _embed(ids_T: Tensor, rows_VD: Tensor, parallel: Parallel) -> Tensor:
    """Rows of the embedding; those of other ranks' tokens are 0 here and come with the sum."""
    if parallel.size == 1:
        return F.embedding(ids_T, rows_VD)
    ids_T = ids_T - parallel.rank * len(rows_VD)
    foreign_T = (ids_T < 0) | (ids_T >= len(rows_VD))
    x_TD = F.embedding(ids_T.masked_fill(foreign_T, 0), rows_VD)
    return parallel.all_reduce(x_TD.masked_fill(foreign_T.unsqueeze(1), 0))


def _logits(ops: Ops, hidden_TD: Tensor, head: Weight, parallel: Parallel) -> Tensor:
    logits = parallel.all_gather(ops.linear(hidden_TD, head))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def has_mtp(config: ModelConfig, weights: Checkpoint) -> bool:
    """Tools that re-save a checkpoint drop the MTP layer and keep its count in the config."""
    prefix = f"model.layers.{config.num_hidden_layers}"
    return config.num_nextn_predict_layers > 0 and any(
        weights.has(f"{prefix}.{n}.weight") for n in ("eh_proj", "enorm", "hnorm")
    )
