"""GLM-4.5 as a trainable network, whose parameters are named as in the published checkpoints.

`glm_portable/model.py` only infers; this one has gradients. Two names differ from those on disk:
`mlp.experts.gate_up_proj` and `mlp.experts.down_proj` hold all experts of a layer at once.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_portable.config import ModelConfig
from tools.pocket_training.layers import MLP, Attention, Linear, Norm, rotary_at
from tools.pocket_training.moe import Gate, MoE


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, dense: bool) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = Norm(d, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(d, eps)
        self.mlp = MLP(d, config.intermediate_size) if dense else MoE(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class SharedHead(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class MTPLayer(Layer):
    """The layer after the last: it guesses the token after next, with the model's own head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, dense=False)
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = Norm(d, eps), Norm(d, eps)
        self.eh_proj = Linear(2 * d, d)
        self.shared_head = SharedHead(config)


class Trunk(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # A norm follows: the size only matters beside what the layers add to it.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        dense, total = config.first_k_dense_replace, config.num_hidden_layers
        layers: list[Layer] = [Layer(config, i < dense) for i in range(total)]
        self.layers = nn.ModuleList([*layers, MTPLayer(config)])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


@dataclass(frozen=True)
class Loss:
    """total: what is minimised. next_token, mtp: means over the assistant's tokens, in nats."""

    total: Tensor
    next_token: float
    mtp: float


class Network(nn.Module):
    """All parameters under the names that they have on disk; activations in `dtype`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.model = Trunk(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, scale=0.5)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """After the final norm: (B, T, D)."""
        x = self.model.embed_tokens(ids_BT).to(self.dtype)
        rotary = rotary_at(torch.arange(ids_BT.shape[1]), self.config)
        for layer in self.model.layers[: self.config.num_hidden_layers]:
            x = layer(x, rotary)
        out: Tensor = self.model.norm(x)
        return out

    def mtp_hidden(self, hidden_BTD: Tensor, next_ids_BT: Tensor) -> Tensor:
        """The MTP layer's output for hidden states and the tokens that follow them: (B, T, D)."""
        layer = self.model.layers[-1]
        assert isinstance(layer, MTPLayer)
        embedded = layer.enorm(self.model.embed_tokens(next_ids_BT).to(self.dtype))
        x = layer.eh_proj(torch.cat([embedded, layer.hnorm(hidden_BTD)], dim=-1))
        rotary = rotary_at(torch.arange(1, next_ids_BT.shape[1] + 1), self.config)
        out: Tensor = layer.shared_head.norm(layer(x, rotary))
        return out

    def gates(self) -> list[Gate]:
        return [module for module in self.modules() if isinstance(module, Gate)]

    def loss(self, ids_BT: Tensor, weights_BT: Tensor, mtp_weight: float = 0.3) -> Loss:
        """Cross-entropy of the next token plus that of the MTP layer's guess of the one after.

        weights_BT: how much each token counts as a target; 1 for those of the assistant.
        """
        hidden = self.hidden(ids_BT)
        following = self._cross_entropy(hidden[:, :-1], ids_BT[:, 1:], weights_BT[:, 1:])
        guess = self.mtp_hidden(hidden[:, :-2], ids_BT[:, 1:-1])
        after = self._cross_entropy(guess, ids_BT[:, 2:], weights_BT[:, 2:])
        return Loss(following[0] + mtp_weight * after[0], following[1], after[1])

    def _cross_entropy(self, h: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, float]:
        counted = weights > 0
        w = weights[counted]
        logits = self.lm_head(h[counted]).float()
        losses = F.cross_entropy(logits, ids[counted], reduction="none")
        return (losses * w).sum() / w.sum(), float(losses.detach()[w == 1].mean())
