"""A model one part at a time: each layer, the head and the MTP layer, on any backend.

Part by part, a model of any size is run within the memory of one layer, and what goes from one part
to the next can be replaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import MTP, Layer, MoE, Rotary
from glm_portable.ops import KVCache, Ops, Step, Weight

Flow = tuple[Tensor, ...]
"""What goes from part to part: (x, residual), before the first layer x alone; of the head and the
MTP layer (hidden states, logits)."""

ATTENTION = (
    ("rms_norm", "input norm"),
    ("linear", "self-attention q, k and v projections"),
    ("rope_store", "rotation of queries and keys, and KV pages"),
    ("attend", "attention over the KV pages"),
    ("linear", "self-attention output projection"),
    ("rms_norm", "post-attention norm"),
)
DENSE = (
    ("linear", "MLP gate and up projections"),
    ("silu_mul", "MLP activation"),
    ("linear", "MLP down projection"),
)
MIXTURE = (
    ("route", "router"),
    ("experts", "routed experts"),
    ("linear", "shared expert's gate and up projections"),
    ("silu_mul", "shared expert's activation"),
    ("linear", "shared expert's down projection"),
)
HEAD = (("rms_norm", "final norm"), ("linear", "head"))
MTP_INPUT = (
    ("rms_norm", "norm of the embedding (enorm)"),
    ("rms_norm", "norm of the hidden states (hnorm)"),
    ("linear", "projection of both (eh_proj)"),
)


class Part(Protocol):
    """One part on one backend, its weights packed."""

    @property
    def places(self) -> Sequence[tuple[str, str]]:
        """Of every op that it calls, in order: the op, and where it is."""

    @property
    def moe(self) -> MoE | None:
        """Its mixture of experts, if it has one."""

    def run(self, given: Flow, next_ids_T: Tensor, step: Step, cache: KVCache) -> Flow:
        """One step."""

    def added(self, given: Flow, found: Flow) -> Tensor:
        """What it is judged by on a given input: (T, ...) in float64."""

    def left(self, found: Flow) -> Tensor:
        """What a model left to itself is judged by behind this part: (T, ...) in float64."""


class Opener(Protocol):
    """Loads part i of a model: `open_part`, or a test's own."""

    def __call__(self, i: int, config: ModelConfig, ops: Ops, weights: Checkpoint) -> Part: ...


@dataclass
class LayerPart:
    layer: Layer
    config: ModelConfig
    dtype: torch.dtype

    @property
    def moe(self) -> MoE | None:
        return self.layer.moe

    @property
    def places(self) -> Sequence[tuple[str, str]]:
        return (*ATTENTION, *(DENSE if self.layer.moe is None else MIXTURE))

    def run(self, given: Flow, next_ids_T: Tensor, step: Step, cache: KVCache) -> Flow:
        rotary = Rotary.at(step.positions_T, self.config, self.dtype)
        x, residual = given if len(given) == 2 else (given[0], None)
        return self.layer(x, residual, rotary, cache, step)

    def added(self, given: Flow, found: Flow) -> Tensor:
        return stream(found) - stream(given)

    def left(self, found: Flow) -> Tensor:
        return stream(found)


class _Logits:
    """A part that ends in logits."""

    def added(self, given: Flow, found: Flow) -> Tensor:
        return found[1].double()

    def left(self, found: Flow) -> Tensor:
        return found[1].double()


@dataclass
class HeadPart(_Logits):
    norm_D: Tensor
    head: Weight
    ops: Ops
    eps: float

    @property
    def moe(self) -> None:
        return None

    @property
    def places(self) -> Sequence[tuple[str, str]]:
        return HEAD

    def run(self, given: Flow, next_ids_T: Tensor, step: Step, cache: KVCache) -> Flow:
        x, residual = given
        hidden = self.ops.rms_norm(x, self.norm_D, self.eps, residual)[0]
        return hidden, self.ops.linear(hidden, self.head)


@dataclass
class MTPPart(_Logits):
    mtp: MTP
    ops: Ops

    @property
    def moe(self) -> MoE | None:
        return self.mtp.layer.moe

    @property
    def places(self) -> Sequence[tuple[str, str]]:
        inside = DENSE if self.moe is None else MIXTURE
        return (*MTP_INPUT, *ATTENTION, *inside, *HEAD)

    def run(self, given: Flow, next_ids_T: Tensor, step: Step, cache: KVCache) -> Flow:
        hidden = self.mtp(next_ids_T, given[0], step, cache)
        return hidden, self.ops.linear(hidden, self.mtp.head)


def stream(flow: Flow) -> Tensor:
    """The residual stream, in float64."""
    return torch.stack([x.double() for x in flow]).sum(0)


def part_names(config: ModelConfig, with_mtp: bool) -> list[str]:
    """Parts in the order they run in: the layers, the head, the MTP layer."""
    count = config.num_hidden_layers
    return [f"layer {i}" for i in range(count)] + ["head"] + with_mtp * [f"layer {count} (MTP)"]


def open_part(i: int, config: ModelConfig, ops: Ops, weights: Checkpoint) -> Part:
    """Part i of `part_names`."""
    count, d, v = config.num_hidden_layers, config.hidden_size, config.vocab_size
    if i < count:
        return LayerPart(Layer(config, ops, weights, i), config, weights.dtype)
    if config.tie_word_embeddings:
        head = ops.pack(Weight(embedding(config, weights), weights.dtype))
    else:
        head = ops.pack(weights.weight(["lm_head"], [v], d))
    if i == count:
        norm = weights.tensor("model.norm.weight", (d,))
        return HeadPart(norm, head, ops, config.rms_norm_eps)
    return MTPPart(MTP(config, ops, weights, embedding(config, weights), head), ops)


def embedding(config: ModelConfig, weights: Checkpoint) -> Tensor:
    return weights.tensor("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
