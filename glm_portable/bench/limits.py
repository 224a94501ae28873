"""What a forward pass must read and compute at least, whatever the implementation.

The roofline model (Williams, Waterman and Patterson 2009): no step is faster than its bytes over
the memory's bandwidth, nor than its operations over the processor's.
"""

from dataclasses import dataclass

from glm_portable.config import ModelConfig


@dataclass(frozen=True)
class Machine:
    """Measured: bytes read a second, and multiplications plus additions a second."""

    bandwidth: float
    flops: float

    def tokens_per_second(self, tokens: int, bytes_read: float, operations: float) -> float:
        """The most that a step of so many tokens can reach."""
        return tokens / max(bytes_read / self.bandwidth, operations / self.flops)


def expert_weights(config: ModelConfig) -> int:
    """Numbers in one routed expert."""
    return 3 * config.hidden_size * config.moe_intermediate_size


def shared_weights(config: ModelConfig) -> int:
    """Numbers that every token passes, the output head apart: attention, dense and shared MLPs."""
    d, dense = config.hidden_size, config.first_k_dense_replace
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    attention = d * (q + 2 * kv) + q * d
    router = config.n_routed_experts * d
    sparse = expert_weights(config) * config.n_shared_experts + router
    layers = config.num_hidden_layers
    return layers * attention + dense * 3 * d * config.intermediate_size + (layers - dense) * sparse


def head_weights(config: ModelConfig) -> int:
    """Numbers in the output head."""
    return config.vocab_size * config.hidden_size


def decode_bytes(config: ModelConfig, experts_read: float, itemsize: int) -> float:
    """Weights read in one decode step that touches so many experts in all layers together."""
    numbers = shared_weights(config) + head_weights(config) + experts_read * expert_weights(config)
    return numbers * itemsize


def prefill_bytes(config: ModelConfig, itemsize: int) -> float:
    """Weights read in a long prefill: all of them once."""
    layers = config.num_hidden_layers - config.first_k_dense_replace
    return decode_bytes(config, layers * config.n_routed_experts, itemsize)


def operations(config: ModelConfig, tokens: int, heads: int, keys: int) -> float:
    """Multiplications plus additions of a step.

    heads: how many rows pass the output head. keys: query-key pairs that attention looks at.
    """
    sparse = config.num_hidden_layers - config.first_k_dense_replace
    chosen = sparse * config.num_experts_per_tok * expert_weights(config)
    products = tokens * (shared_weights(config) + chosen) + heads * head_weights(config)
    width = config.num_attention_heads * config.head_dim
    return 2 * products + 4 * config.num_hidden_layers * keys * width
