"""How much memory the reference takes, and in which precision it fits.

Counted are the weights that are there at a time, with the copies that are made of them, and what
the tokens need; never less than what it takes (`tests/verify/golden/test_memory.py` measures).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.verify.golden.fingerprint import WIDTH
from glm_portable.verify.golden.head import TOP
from glm_portable.verify.golden.streamed import BLOCK
from glm_portable.verify.model.layers import SLOTS

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
COPIES = 4
"""Of a step's widest activations that are there at a time: inputs, outputs, and between them."""
SPARE = 24 * 2**20
"""What allocators keep, files' headers, and threads."""


@dataclass(frozen=True)
class Plan:
    """dtype: of the exact run. needed: bytes of this process at most. budget: what it may have."""

    dtype: torch.dtype
    needed: int
    budget: int


def plan(
    config: ModelConfig, lengths: Sequence[int], budget: int, *, quantised: bool = False
) -> Plan:
    """Float64 if it fits, else float32. lengths: tokens of each prompt. Raises UsageError."""
    resident = resident_bytes()
    for dtype in (torch.float64, torch.float32):
        needed = resident + bytes_needed(config, lengths, dtype, quantised)
        if needed <= budget:
            return Plan(dtype, needed, budget)
    raise UsageError(
        f"the reference needs {needed / 2**20:,.0f} MiB for {sum(lengths)} tokens in float32, and "
        f"--memory gives it {budget / 2**20:,.0f}: raise it, or take fewer or shorter prompts."
    )


def bytes_needed(
    config: ModelConfig, lengths: Sequence[int], dtype: torch.dtype, quantised: bool
) -> int:
    """Of the process, beyond what it has before it reads the first weight."""
    weights = max(_layer_elements(config), _block_rows(config) * config.hidden_size)
    copies = 3 if quantised else 1  # dequantised, and between
    kept = _kept_bytes(config, sum(lengths))
    return weights * dtype.itemsize * copies + _token_bytes(config, lengths, dtype) + kept + SPARE


def _block_rows(config: ModelConfig) -> int:
    return min(BLOCK, config.vocab_size)


def _layer_elements(config: ModelConfig) -> int:
    """Of the largest set of weights in memory: attention with a dense MLP, or a shared expert and
    a routed one; with the MTP layer's projection."""
    d, size = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    dense = config.intermediate_size if config.first_k_dense_replace else 0
    sparse = config.moe_intermediate_size * (config.n_shared_experts + 1)
    gates = config.n_routed_experts * d
    return d * (2 * q + 2 * kv + 3 * max(dense, sparse) + 2 * d) + gates


def _token_bytes(config: ModelConfig, lengths: Sequence[int], dtype: torch.dtype) -> int:
    """Activations of a step, the scores of one prompt's attention, and the streams."""
    d, size, count = config.hidden_size, config.head_dim, sum(lengths)
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    widest = max(
        2 * d + q + 2 * kv,
        2 * config.intermediate_size,
        _block_rows(config),
        config.n_routed_experts * 2,
    )
    scores = COPIES * config.num_attention_heads * max(lengths) ** 2
    pages = sum(-(-n // SLOTS) * SLOTS for n in lengths) * 2 * kv
    embedding = min(count, config.vocab_size) * d
    streams = 6 * count * d
    elements = COPIES * count * widest + scores + 2 * pages + 2 * embedding + streams
    # The plain run has two copies of the prompts in BF16, whose routers work in float32.
    return elements * max(dtype.itemsize, 4) + count * d * 16


def _kept_bytes(config: ModelConfig, count: int) -> int:
    """Fingerprints, twice while they are written, and the signs."""
    return 2 * stored_bytes(config, count) + 4 * WIDTH * (config.vocab_size + config.hidden_size)


def stored_bytes(config: ModelConfig, count: int) -> int:
    """Of a golden file of so many tokens, but for its description."""
    return count * bytes_per_token(config)


def bytes_per_token(config: ModelConfig) -> int:
    """4 (W + 1) a stream, 8 W a cache, 2 K + 4 a router, 8 TOP + 4 the logprobs; W = WIDTH."""
    layers = config.num_hidden_layers
    mtp = min(1, config.num_nextn_predict_layers)
    streams = (layers + 1) * 4 * (WIDTH + 1)
    caches = (layers + mtp) * 8 * WIDTH
    routers = layers + mtp - config.first_k_dense_replace
    routed = routers * (2 * config.num_experts_per_tok + 4)
    top = 8 * min(TOP, config.vocab_size) + 4
    return streams + caches + routed + top + (1 + mtp) * 8 * WIDTH + 9 + mtp * 12


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def parse_bytes(text: str) -> int:
    """8GiB, 500MB, 1.5G (a G without i or B is 10^9). Raises UsageError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if found is None or found[2] not in UNITS:
        raise UsageError(f"{text!r} is no amount of memory; write 8GiB or 500MB.")
    return int(float(found[1]) * UNITS[found[2]])
