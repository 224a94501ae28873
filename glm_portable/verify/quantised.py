"""A plain checkpoint read as its FP8 version: for models of which nobody publishes one."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from glm_portable.checkpoint import Checkpoint
from glm_portable.ops import Weight

FP8 = torch.float8_e4m3fn


class QuantisedCheckpoint(Checkpoint):
    """Quantises when read what the published FP8 files hold quantised, and in their scheme.

    That is every projection and expert, but neither the head nor the MTP layer's `eh_proj`: one
    scale an output channel, max|w| / 448, and activations rounded per token (compressed-tensors).
    """

    def weight(
        self, modules: Sequence[str], out_features: Sequence[int], in_features: int
    ) -> Weight:
        w = super().weight(modules, out_features, in_features)
        chosen = all(m.endswith("_proj") and not m.endswith("eh_proj") for m in modules)
        return quantise(w) if chosen else w

    def experts(
        self,
        prefix: str,
        projections: Sequence[str],
        count: int,
        out_features: int,
        in_features: int,
    ) -> Weight:
        return quantise(super().experts(prefix, projections, count, out_features, in_features))


def quantise(w: Weight) -> Weight:
    """A plain weight (..., N, R) in FP8 with float32 scales (..., N, 1); others as they are."""
    if w.scale is not None:
        return w
    wide = w.data.float()
    scale = wide.abs().amax(-1, keepdim=True) / torch.finfo(FP8).max
    codes = torch.where(scale > 0, wide / scale, 0.0).to(FP8)
    return replace(w, data=codes, scale=scale, dynamic_activations=True)
