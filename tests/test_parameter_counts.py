"""The tensors the model asks for add up to the published sizes of the real checkpoints."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Weight
from glm_portable.parallel import SINGLE

CONFIGS = json.loads((Path(__file__).parent / "data" / "published_configs.json").read_text())
META = torch.device("meta")


class Counter:
    """A checkpoint of shapes alone, as GLM-4.6's: without the MTP layer's two copies."""

    dtype = torch.bfloat16
    parallel = SINGLE

    def __init__(self) -> None:
        self.elements: dict[str, int] = {}

    def has(self, name: str) -> bool:
        return "embed_tokens" not in name and "shared_head.head" not in name

    def is_quantised(self, module: str) -> bool:
        return False

    def kv_scales(self, attention: str) -> None:
        pass

    def tensor(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        assert name not in self.elements
        self.elements[name] = math.prod(shape)
        return torch.empty(shape, device=META)

    def weight(self, modules: Sequence[str], outs: Sequence[int], in_features: int) -> Weight:
        for module, n in zip(modules, outs, strict=True):
            self.tensor(f"{module}.weight", (n, in_features))
        return Weight(torch.empty(sum(outs), in_features, device=META), self.dtype)

    def experts(
        self, prefix: str, projections: Sequence[str], count: int, out: int, in_features: int
    ) -> Weight:
        names = [f"{prefix}.{e}.{p}" for e in range(count) for p in projections]
        self.weight(names, [out] * len(names), in_features)
        return Weight(
            torch.empty(count, len(projections) * out, in_features, device=META), self.dtype
        )

    def finish(self) -> None:
        assert self.elements


@pytest.mark.parametrize(
    "name, main, total_without_copies",
    [
        ("GLM-4.5", 352_797_829_024, 356_785_898_816),
        ("GLM-4.5-Air", 106_852_251_264, 110_468_824_832 - 2 * 151552 * 4096),
    ],
)
def test_parameter_count(name: str, main: int, total_without_copies: int) -> None:
    config = ModelConfig.from_dict(CONFIGS[f"zai-org/{name}"])
    counter = Counter()
    Model(config, ops.load("reference"), cast(Checkpoint, counter))
    mtp = f"model.layers.{config.num_hidden_layers}."
    assert sum(counter.elements.values()) == total_without_copies
    assert sum(n for k, n in counter.elements.items() if not k.startswith(mtp)) == main
