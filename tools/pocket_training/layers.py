"""Attention and MLP with gradients, over rows of equal length: (B, T, D).

Parameters are float32; each is cast to the dtype of the activations that it meets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_portable.config import ModelConfig


def init(*shape: int, scale: float = 1.0) -> nn.Parameter:
    """Normal, with the deviation that keeps the variance of its input, times `scale`."""
    return nn.Parameter(torch.randn(shape) * scale * shape[-1] ** -0.5)


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = init(outputs, inputs, scale=scale)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Norm(nn.Module):
    """RMS norm (Zhang and Sennrich 2019), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention over whole rows, (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, c, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.size = c
        self.q_proj = Linear(d, heads * c, config.attention_bias)
        self.k_proj = Linear(d, groups * c, config.attention_bias)
        self.v_proj = Linear(d, groups * c, config.attention_bias)
        self.o_proj = Linear(heads * c, d, scale=0.5)
        self.q_norm = Norm(c, eps) if config.use_qk_norm else nn.Identity()
        self.k_norm = Norm(c, eps) if config.use_qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (p(x_BTD).unflatten(-1, (-1, self.size)) for p in self._projections())
        q, k = rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def _projections(self) -> tuple[Linear, Linear, Linear]:
        return self.q_proj, self.k_proj, self.v_proj


def rotary_at(positions_T: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, 1, rotary_dim), each angle twice (Su et al. 2021)."""
    even = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32)
    angles = positions_T.float()[:, None] * config.rope_theta ** (-even / config.rotary_dim)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x_BTHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first dimensions of each head, their first half against their second."""
    size, dtype = cos.shape[-1], x_BTHC.dtype
    cos, sin = cos.to(dtype), sin.to(dtype)
    turned, kept = torch.split(x_BTHC, [size, x_BTHC.shape[-1] - size], dim=-1)
    low, high = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-high, low], dim=-1) * sin, kept], dim=-1)


def silu_mul(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


class MLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden, scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out
