"""The model split among processes equals the model in one, and each way to get it wrong is seen."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Step
from glm_portable.parallel import SINGLE, Parallel
from glm_portable.verify.metrics import faults
from tests.random_checkpoint import small_config, write_checkpoint
from tests.ranks import Ranks

CONFIG = small_config(
    vocab_size=264, n_routed_experts=8, moe_intermediate_size=48, num_hidden_layers=2,
    use_qk_norm=True, routed_scaling_factor=2.5,
)  # fmt: skip
IDS = torch.randint(0, 250, (23,), generator=torch.Generator().manual_seed(7)).tolist()
PAGE = 4
SPLITS = [(2, 1), (4, 1), (2, 2), (4, 4), (4, 2)]
"""(ranks, groups of experts): tensor parallel, expert parallel, and both at once."""
NAMES = ["TP2", "TP4", "EP2", "EP4", "TP2xEP2"]

Outputs = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    started = Ranks(4)
    yield started
    started.close()


@dataclass(frozen=True)
class Faulty(Parallel):
    """Counts what is exchanged; `fault` goes wrong at every reduce of the second layer on."""

    fault: str = ""
    seen: list[str] = field(default_factory=list)

    def all_reduce(self, x: Tensor) -> Tensor:
        self.seen.append("reduce")
        late = len(self.seen) > 3
        if self.fault == "missing" and late:
            return x
        x = super().all_reduce(x)
        return super().all_reduce(x) if self.fault == "twice" and late else x

    def all_gather(self, x: Tensor) -> Tensor:
        self.seen.append("gather")
        return super().all_gather(x)


def load(
    parallel: Parallel, folder: Path, backend: str, dtype: torch.dtype, quantization: str | None
) -> Model:
    config = ModelConfig.load(folder)
    weights = Checkpoint(folder, config, dtype=dtype, parallel=parallel, quantization=quantization)
    return Model(config, ops.load(backend), weights)


def outputs(model: Model, ids: list[int] = IDS) -> Outputs:
    """(logits, MTP logits) of one sequence, in a prefill and then one decode step."""
    pages = -(-len(ids) // PAGE)
    order, caches = list(range(pages, 0, -1)), model.allocate(pages + 1, PAGE)
    found: list[Outputs] = []
    assert model.mtp is not None
    with torch.inference_mode():
        for begin, end in ((0, len(ids) - 1), (len(ids) - 1, len(ids))):
            step = Step.build([(begin, end - begin, order)], PAGE, model.ops.device)
            hidden = model.forward(torch.tensor(ids[begin:end]), step, caches)
            following = torch.tensor([*ids, 5][begin + 1 : end + 1])
            drafted = model.mtp(following, hidden, step, caches[-1])
            found.append((model.logits(hidden), model.mtp_logits(drafted)))
    return torch.cat([a for a, _ in found]), torch.cat([b for _, b in found])


def compute(
    parallel: Parallel,
    groups: int,
    folder: Path,
    backend: str = "reference",
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
    fault: str = "",
) -> tuple[Outputs, list[str]]:
    """One rank's outputs, which all ranks have, and what it exchanged."""
    ours = Faulty(parallel.rank, parallel.size, groups, parallel.group, fault)
    model = load(ours, folder, backend, dtype, quantization)
    return outputs(model), ours.seen


def alone(folder: Path, dtype: torch.dtype, **options: Any) -> Outputs:
    return compute(SINGLE, 1, folder, dtype=dtype, **options)[0]


def judge(found: Outputs, plain: Outputs, exact: Outputs) -> list[str]:
    return [f for a, p, e in zip(found, plain, exact, strict=True) for f in faults(a, p, e)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(made, CONFIG)
    return made


@pytest.mark.parametrize(("size", "groups"), SPLITS, ids=NAMES)
def test_logits_of_a_split_model(ranks: Ranks, folder: Path, size: int, groups: int) -> None:
    exact, plain = (alone(folder, t) for t in (torch.float64, torch.float32))
    found = ranks.run(size, compute, groups, folder)
    for answer, _ in found:
        assert judge(answer, plain, exact) == []
        assert all(torch.equal(a, b) for a, b in zip(answer, found[0][0], strict=True))
