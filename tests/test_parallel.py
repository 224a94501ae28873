"""The model split among processes equals the model in one, and each way to get it wrong is seen."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.engine.limits import page_bytes
from glm_portable.errors import UsageError
from glm_portable.model import Model
from glm_portable.ops import Step
from glm_portable.parallel import SINGLE, Parallel, Split
from glm_portable.verify.metrics import faults
from tests.random_checkpoint import small_config, tensor_shapes, write_checkpoint
from tests.ranks import Ranks

CONFIG = small_config(
    vocab_size=264, n_routed_experts=8, moe_intermediate_size=48, num_hidden_layers=2,
    use_qk_norm=True, routed_scaling_factor=2.5,
)  # fmt: skip
IDS = torch.randint(0, 250, (23,), generator=torch.Generator().manual_seed(7)).tolist()
PAGE = 16
SPLITS = [(2, 1), (4, 1), (2, 2), (4, 4), (4, 2)]
"""(ranks, groups of experts): tensor parallel, expert parallel, and both at once."""
NAMES = ["TP2", "TP4", "EP2", "EP4", "TP2xEP2"]

ALL_CHOSEN = CONFIG | {"num_experts_per_tok": CONFIG["n_routed_experts"]}
"""Where rounding cannot make the router take another expert, which changes a row entirely."""

Outputs = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    started = Ranks(4)
    yield started
    started.close()


@dataclass(frozen=True)
class Faulty(Parallel):
    """Notes what is exchanged. fault: what goes wrong, "missing" and "twice" at the 4th reduce."""

    fault: str = ""
    seen: list[str] = field(default_factory=list)

    def all_reduce(self, x: Tensor) -> Tensor:
        self.seen.append("reduce")
        fault = self.fault if len(self.seen) == 4 else ""
        x = x if fault == "missing" else super().all_reduce(x)
        return super().all_reduce(x) if fault == "twice" else x

    def split(self, module: str, config: ModelConfig) -> Split:
        if self.fault == "shared" and "shared_experts" in module:
            return Split()
        return super().split(module, config)

    def all_gather(self, x: Tensor) -> Tensor:
        self.seen.append("gather")
        return super().all_gather(x)


def load(
    parallel: Parallel,
    folder: Path,
    backend: Any = "reference",
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
    rounded: bool = True,
) -> Model:
    """rounded: whether activations are, where the checkpoint asks for it."""
    config = ModelConfig.load(folder)
    if config.quantization is not None and not rounded:
        config = replace(
            config, quantization=replace(config.quantization, dynamic_activations=False)
        )
    machine = ops.load(backend) if isinstance(backend, str) else backend
    weights = Checkpoint(
        folder,
        config,
        dtype=dtype,
        device=machine.device,
        quantization=quantization,
        parallel=parallel,
    )
    return Model(config, machine, weights)


def outputs(model: Model, ids: list[int] = IDS) -> Outputs:
    """(logits, MTP logits) of one sequence, in a prefill and then one decode step."""
    pages = -(-len(ids) // PAGE)
    order, caches = list(range(pages, 0, -1)), model.allocate(pages + 1, PAGE)
    found: list[Outputs] = []

    def tokens(some: list[int]) -> Tensor:
        return torch.tensor(some, device=model.ops.device)

    assert model.mtp is not None
    with torch.inference_mode():
        for begin, end in ((0, len(ids) - 1), (len(ids) - 1, len(ids))):
            step = Step.build([(begin, end - begin, order)], PAGE, model.ops.device)
            hidden = model.forward(tokens(ids[begin:end]), step, caches)
            following = tokens([*ids, 5][begin + 1 : end + 1])
            drafted = model.mtp(following, hidden, step, caches[-1])
            found.append((model.logits(hidden), model.mtp_logits(drafted)))
    return torch.cat([a for a, _ in found]), torch.cat([b for _, b in found])


def compute(
    parallel: Parallel, groups: int, folder: Path, fault: str = "", **options: Any
) -> tuple[Outputs, list[str]]:
    """One rank's outputs, which all ranks have, and what it exchanged."""
    ours = Faulty(parallel.rank, parallel.size, groups, parallel.group, fault=fault)
    return outputs(load(ours, folder, **options)), ours.seen


@cache
def alone(folder: Path, **options: Any) -> Outputs:
    return outputs(load(SINGLE, folder, **options))


def judge(found: Outputs, plain: Outputs, exact: Outputs) -> list[str]:
    return [f for a, p, e in zip(found, plain, exact, strict=True) for f in faults(a, p, e)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(made, CONFIG)
    return made


@pytest.fixture(scope="module")
def all_chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("all_chosen")
    write_checkpoint(made, ALL_CHOSEN | {"torch_dtype": "bfloat16"})
    return made


@pytest.mark.parametrize(("size", "groups"), SPLITS, ids=NAMES)
def test_logits_of_a_split_model(ranks: Ranks, folder: Path, size: int, groups: int) -> None:
    exact, plain = alone(folder, dtype=torch.float64), alone(folder)
    found = ranks.run(size, compute, groups, folder)
    for answer, _ in found:
        assert judge(answer, plain, exact) == []
        assert all(torch.equal(a, b) for a, b in zip(answer, found[0][0], strict=True))


def sums(parallel: Parallel, in_order: bool) -> tuple[Tensor, Tensor]:
    """Of every rank's rows together, and one by one."""
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(parallel.rank))
    ours = replace(parallel, in_order=in_order)
    together = ours.all_reduce(x.clone())
    return together, torch.cat([ours.all_reduce(row.clone()) for row in torch.split(x, 1)])


def test_sums_in_order_do_not_depend_on_other_rows(ranks: Ranks) -> None:
    size = 4
    for together, alone in ranks.run(size, sums, True):
        assert torch.equal(together, alone)
    exact, found = torch.zeros(5, 64), ranks.run(size, sums, True)[0][0]
    for rank in range(size):
        exact += torch.randn(5, 64, generator=torch.Generator().manual_seed(rank))
    assert torch.equal(found, exact)


def test_a_head_that_is_the_embedding(ranks: Ranks, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG | {"tie_word_embeddings": True, "n_shared_experts": 2})
    exact, plain = alone(tmp_path, dtype=torch.float64), alone(tmp_path)
    (found, _), _ = ranks.run(2, compute, 1, tmp_path)
    assert judge(found, plain, exact) == []


def test_what_is_exchanged(ranks: Ranks, folder: Path) -> None:
    """One sum for the embedding, one after attention and one after the MLP of every layer."""
    main = ["reduce"] * (1 + 2 * CONFIG["num_hidden_layers"])
    drafted = ["reduce"] * (1 + 2)
    step = [*main, *drafted, "gather", "gather"]
    for groups in (1, 2):
        assert [seen for _, seen in ranks.run(2, compute, groups, folder)] == [2 * step] * 2


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("fault", ["missing", "twice", "shared"])
def test_a_wrong_sum_is_seen(ranks: Ranks, folder: Path, fault: str, groups: int) -> None:
    exact, plain = alone(folder, dtype=torch.float64), alone(folder)
    (answer, _), _ = ranks.run(2, compute, groups, folder, fault)
    assert judge(answer, plain, exact)


def run_options(parallel: Parallel, groups: int, folder: Path, options: dict[str, Any]) -> Outputs:
    return compute(parallel, groups, folder, **options)[0]


@pytest.mark.parametrize(("size", "groups"), [(4, 1), (2, 2)], ids=["TP4", "EP2"])
@pytest.mark.parametrize("kind", ["fp8", "fp8_block", "int8", "to w8a8"])
def test_quantised_checkpoints(
    ranks: Ranks, tmp_path: Path, kind: Any, size: int, groups: int
) -> None:
    """A rank rounds the activations of its slice by themselves, in finer steps if in others.

    The yardstick is what one rank loses by rounding. Slices of 24 and 12 cut the blocks of 32.
    """
    converted = {"quantization": "w8a8"} if kind == "to w8a8" else {}
    write_checkpoint(tmp_path, ALL_CHOSEN, quantize=None if converted else kind)
    exact = alone(tmp_path, dtype=torch.float64, rounded=False)
    plain = alone(tmp_path, **converted)
    (found, *_) = ranks.run(size, run_options, groups, tmp_path, converted)
    assert judge(found, plain, exact) == []


@pytest.mark.parametrize(("size", "groups"), [(4, 1), (4, 2)], ids=["TP4", "TP2xEP2"])
def test_sums_of_bf16(ranks: Ranks, all_chosen: Path, size: int, groups: int) -> None:
    options: dict[str, Any] = {"backend": "cpu", "dtype": torch.bfloat16}
    exact, plain = alone(all_chosen, dtype=torch.float64), alone(all_chosen, **options)
    (found, *_) = ranks.run(size, run_options, groups, all_chosen, options)
    assert judge(found, plain, exact) == []


@pytest.mark.parametrize(("size", "groups"), [(4, 1), (2, 2)], ids=["TP4", "EP2"])
def test_the_pocket_model(ranks: Ranks, size: int, groups: int) -> None:
    """Two key/value heads: among four ranks each is on two of them."""
    exact, plain = alone(pocket.FOLDER, dtype=torch.float64), alone(pocket.FOLDER, backend="cpu")
    (found, *_) = ranks.run(size, run_options, groups, pocket.FOLDER, {"backend": "cpu"})
    assert judge(found, plain, exact) == []


PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_configs.json").read_text())


@pytest.mark.parametrize("name", ["GLM-4.5", "GLM-4.5-Air"])
def test_the_published_models_can_be_split(name: str) -> None:
    config = ModelConfig.from_dict(PUBLISHED[f"zai-org/{name}"])
    for size in (1, 2, 4, 8, 16, 32):
        for groups in {1, 2, size} - ({2} if size == 1 else set()):
            for rank in range(size):
                ours = Parallel(rank, size, groups)
                ours.check(config)
                heads = ours.local(config)
                assert heads.num_attention_heads * size == 96
                assert heads.num_key_value_heads == max(1, 8 // size)
                first_query_head = rank * heads.num_attention_heads
                kv = ours.split("model.layers.0.self_attn.k_proj", config).rows.of(8)
                assert kv.start == first_query_head // 12


def held_gib(raw: dict[str, Any], parallel: Parallel) -> float:
    """Of a rank's weights in BF16, the router in float32, without the MTP layer's copies."""
    config, total = ModelConfig.from_dict(raw), 0
    for name, shape in tensor_shapes(raw):
        module = name.rpartition(".")[0]
        if parallel.holds(module, config):
            split = parallel.split(module, config)
            parts = [
                part.of(n) for part, n in zip((split.rows, split.columns), shape, strict=False)
            ]
            router = name.endswith(("mlp.gate.weight", "e_score_correction_bias"))
            total += math.prod(map(len, parts)) * (4 if router else 2)
    return total / 2**30


def test_the_documented_memory() -> None:
    text = (Path(__file__).parents[1] / "docs" / "parallel.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \|$", text, re.M)
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16]
    for count, *cells in rows:
        size = int(count)
        for name, gib, token in (("GLM-4.5", *cells[:2]), ("GLM-4.5-Air", *cells[2:])):
            raw = PUBLISHED[f"zai-org/{name}"]
            for groups in {1, size}:
                assert f"{held_gib(raw, Parallel(size - 1, size, groups)):.1f}" == gib
            local = Parallel(0, size).local(ModelConfig.from_dict(raw))
            assert f"{page_bytes(local, 1, 2):,}" == token


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (Parallel(0, 3), "vocab_size 151552 is no multiple of 3; .* can be 1, 2, 4, 8, 16, 32"),
        (Parallel(0, 64), "num_attention_heads 96 is no multiple of 64"),
        (Parallel(0, 64, 64), "num_attention_heads 96 is no multiple of 64; .* 8, 16, 32 here"),
        (Parallel(0, 4, 3), "split among 4 ranks: 4 is no multiple of 3 groups of experts"),
    ],
)
def test_what_cannot_be_split_is_refused(parallel: Parallel, message: str) -> None:
    config = ModelConfig.from_dict(PUBLISHED["zai-org/GLM-4.5"])
    with pytest.raises(UsageError, match=message):
        parallel.check(config)
