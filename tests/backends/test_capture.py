"""A decode step fits a graph: nothing about it depends on what its tensors hold.

A CUDA or HIP graph repeats launches with the grids and addresses they had when it was captured.
Here a whole model runs with a launch that starts nothing, so that kernels leave behind whatever
unset memory is made to hold: other experts chosen, other lengths, NaN.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glm_portable.backends.rocm import virtual
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.kernels.launch import observed
from glm_portable.model import Model
from glm_portable.ops import KVCache, Step, decode_step
from tests.backends.dispatch import Filled
from tests.random_checkpoint import (
    quantization_config,
    quantize_tensors,
    random_tensors,
    small_config,
    write_files,
)

PAGE, BATCH, LONGEST, SCRATCH = 64, 4, 9000, 150
SEQUENCES = [
    [(300, [3, 1, 2, 9, 8])],
    [(8191, list(range(128))), (0, [140]), (63, [141])],
]


class Machine:
    """A launch that notes what it is asked for, tensors by their form."""

    def __init__(self) -> None:
        self.launches: list[Any] = []

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        options: Mapping[str, int],
        **constexprs: Any,
    ) -> None:
        forms = [
            (tuple(a.shape), a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in arguments
        ]
        self.launches.append((kernel.__name__, grid, forms, dict(options), constexprs))


class Sizes(Filled):  # type: ignore[no-untyped-call]  # torch has no types here
    """Notes the shape of everything that torch's own operations return."""

    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.shapes: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(result, Tensor):
            self.shapes.append((str(func), tuple(result.shape)))
        return result


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(use_qk_norm=True, head_dim=32)
    tensors = random_tensors(config)
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "fp8":
        tensors = quantize_tensors(tensors, "fp8")
        config = config | {"quantization_config": quantization_config("fp8", (1, 1))}
    write_files(path, config, tensors)
    return path


def load(folder: Path, launch: Any, arch: str = "gfx950") -> tuple[Model, list[KVCache]]:
    config = ModelConfig.load(folder)
    model = Model(config, virtual(arch, launch), Checkpoint(folder, config, dtype=torch.bfloat16))
    return model, model.allocate(SCRATCH + 1, PAGE)


def step(sequences: Sequence[tuple[int, Sequence[int]]]) -> Step:
    return decode_step(sequences, BATCH, LONGEST, SCRATCH, PAGE, torch.device("cpu"))


def decode(model: Model, ids: Tensor, now: Step, caches: list[KVCache]) -> Tensor:
    hidden = model.forward(ids, now, caches)
    assert model.mtp is not None
    model.mtp_logits(model.mtp(ids, hidden, now, caches[-1]))
    return model.logits(hidden)


@torch.inference_mode()
def test_launches_and_memory_do_not_depend_on_contents(folder: Path) -> None:
    seen = []
    for value, sequences in zip((0.0, 7.0, torch.nan), (*SEQUENCES, SEQUENCES[0]), strict=True):
        machine = Machine()
        model, caches = load(folder, machine)
        ids, now = torch.full((BATCH,), int(value == 7)), step(sequences)
        with Sizes(value) as sizes:
            decode(model, ids, now, caches)
        seen.append((machine.launches, sizes.shapes))
    assert seen[0] == seen[1] == seen[2]
    names = {name for name, *_ in seen[0][0]}
    assert {"attend_kernel", "merge_kernel", "grouped_gemm_kernel", "rope_store_kernel"} <= names


@torch.inference_mode()
def test_a_step_of_other_lengths_is_noticed_without_fixed_shapes(folder: Path) -> None:
    """What the test above would say of plain steps."""
    seen = []
    for length in (100, 3000):
        machine = Machine()
        model, caches = load(folder, machine)
        plain = Step.build([(length, 1, range(100))], PAGE, torch.device("cpu"))
        decode(model, torch.zeros(1, dtype=torch.int64), plain, caches)
        seen.append(machine.launches)
    assert seen[0] != seen[1]


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Raises where torch would wait for a GPU to know a number or the size of a result."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READS or masked:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


READS = (
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "repeat_interleave",
)


def refuse(*arguments: Any) -> None:
    raise AssertionError("the host reads a tensor")


@torch.inference_mode()
def test_nothing_is_read_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, caches = load(folder, Machine())
    ids, now = torch.zeros(BATCH, dtype=torch.int64), step(SEQUENCES[1])
    for method in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, method, refuse)
    with NoHostReads():  # type: ignore[no-untyped-call]  # as above
        decode(model, ids, now, caches)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(), lambda x: int(x.max()), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: torch.equal(x, x), lambda x: bool(x.any()), lambda x: x.unique(),
        lambda x: x.repeat_interleave(x), lambda x: range(x[0]),
    ],
)  # fmt: skip
def test_a_read_is_noticed(read: Callable[[Tensor], object]) -> None:
    with (
        pytest.raises(AssertionError, match="waits for the device"),
        NoHostReads(),  # type: ignore[no-untyped-call]  # as above
    ):
        read(torch.ones(3, dtype=torch.int64))


@torch.inference_mode()
def test_experts_attention_and_products_run_in_the_kernels(folder: Path) -> None:
    launch, seen = observed(Machine())
    model, caches = load(folder, launch, "gfx942")
    decode(model, torch.zeros(BATCH, dtype=torch.int64), step(SEQUENCES[0]), caches)
    layers = model.config.num_hidden_layers + 1
    sparse = layers - model.config.first_k_dense_replace
    assert seen["rope_store"] == seen["attend"] == seen["merge"] == layers
    assert seen["gate"] == seen["choose"] == seen["combine"] == seen["place"] == sparse
    assert seen["grouped_gemm"] >= 2 * sparse
    fp8 = folder.name.startswith("fp8")
    # Rows are quantised where a norm or a gate made them, but for attention's output.
    assert seen["quantize"] == (layers if fp8 else 0)


def test_rows_beyond_the_sequences_go_to_the_scratch_page() -> None:
    now = step(SEQUENCES[1])
    assert now.kv_lengths == (LONGEST,) * BATCH and now.query_ends == (1, 2, 3, 4)
    assert now.kv_lengths_B.tolist() == [8192, 1, 64, 1]
    assert now.positions_T.tolist() == [8191, 0, 63, 0]
    assert now.slots_T.tolist() == [127 * 64 + 63, 140 * 64, 141 * 64 + 63, SCRATCH * 64]
    assert now.block_table_BP.shape == step([]).block_table_BP.shape == (BATCH, 141)
    assert now.block_table_BP[:, 0].tolist() == [0, 140, 141, SCRATCH]


@pytest.mark.parametrize("sequences", [[(LONGEST, [0])], [(1, [0])] * (BATCH + 1)])
def test_what_does_not_fit_is_refused(sequences: list[tuple[int, list[int]]]) -> None:
    with pytest.raises(UsageError, match="do not fit a decode step of 4 sequences of 9000 tokens"):
        step(sequences)
