"""The backend on several virtual NPUs, one a process; gloo stands where HCCL is on hardware."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import ascend
from glm_portable.ops import collectives
from glm_portable.parallel import Parallel
from glm_portable.virtual import npu
from glm_portable.virtual.npu import standins
from glm_portable.virtual.npu.devices import Devices
from glm_portable.virtual.npu.machine import Machine
from tests.random_checkpoint import small_config, write_checkpoint
from tests.ranks import Ranks
from tests.test_parallel import Faulty, Outputs, alone, judge, load, outputs

CHIP = "Ascend910_9391"
BF16 = torch.bfloat16
CONFIG = small_config(
    hidden_size=128, head_dim=128, num_attention_heads=4, num_key_value_heads=2,
    moe_intermediate_size=64, intermediate_size=192, n_routed_experts=8, num_hidden_layers=2,
    num_experts_per_tok=8, use_qk_norm=True, routed_scaling_factor=2.5, vocab_size=264,
    torch_dtype="bfloat16",
)  # fmt: skip
"""Every token takes every expert: rounding changes none of its choices."""


@pytest.fixture(scope="module")
def ranks(torch_npu_is_here: None) -> Iterator[Ranks]:
    started = Ranks(4, partial(standins.load, CHIP, 4))
    yield started
    started.close()


def compute(parallel: Parallel, groups: int, folder: Path) -> tuple[Outputs, list[str]]:
    ours = Faulty(parallel.rank, parallel.size, groups, parallel.group)
    machine = npu.connect(CHIP)
    assert collectives(machine) == "gloo"
    found = outputs(load(ours, folder, backend=machine, dtype=BF16))
    return found, sorted(machine.npu._machine.ran)


@pytest.mark.parametrize(
    ("kind", "size", "groups"),
    [
        pytest.param(None, 2, 1, id="TP2"),
        pytest.param(None, 4, 2, id="TP2xEP2"),
        pytest.param(
            "int8", 4, 1, id="TP4-w8a8"
        ),  # slices of 16, which the fused gate does not take
        pytest.param("int8", 2, 2, id="EP2-w8a8"),
    ],
)
def test_a_split_model(ranks: Ranks, tmp_path: Path, kind: Any, size: int, groups: int) -> None:
    write_checkpoint(tmp_path, CONFIG, quantize=kind, bias_range=(6.8, 7.1))
    exact = alone(tmp_path, dtype=torch.float64, rounded=False)
    plain = alone(tmp_path, dtype=BF16)
    (found, ran), *_ = ranks.run(size, compute, groups, tmp_path)
    assert judge(found, plain, exact) == []
    used = {"npu_grouped_matmul", "npu_moe_gating_top_k", "npu_fused_infer_attention_score"}
    assert used <= set(ran)
    assert ("npu_quant_matmul" in ran) == (kind == "int8")


def exchange(parallel: Parallel) -> tuple[str, Tensor, Tensor]:
    """A sum and a gathering of tensors on the device that has this rank's number."""
    device = torch.device("npu", parallel.rank)
    torch.accelerator.set_device_index(parallel.rank)
    with torch.inference_mode(), Devices(Machine(CHIP)):
        x = torch.full((2, 3), 2.0**parallel.rank, dtype=BF16, device=device)
        gathered = parallel.all_gather(x)
        total = parallel.all_reduce(x)
        return str(total.device), total.cpu(), gathered.cpu()


def test_tensors_of_devices_are_exchanged(ranks: Ranks) -> None:
    for rank, (device, total, gathered) in enumerate(ranks.run(4, exchange)):
        assert device == f"npu:{rank}"
        assert torch.equal(total, torch.full((2, 3), 15.0, dtype=BF16))
        assert torch.equal(gathered[1], torch.tensor([1, 2, 4, 8]).repeat_interleave(3).to(BF16))


def on_device(parallel: Parallel, groups: int, folder: Path) -> Outputs:
    """The whole model on the device that has this rank's number."""
    device = torch.device("npu", parallel.rank)
    torch.accelerator.set_device_index(parallel.rank)
    ours = Parallel(parallel.rank, parallel.size, groups, parallel.group)
    with torch.inference_mode(), Devices(Machine(CHIP)):
        machine = ascend.virtual(CHIP, torch.ops.npu, device)
        assert collectives(machine) == "hccl"
        found = outputs(load(ours, folder, backend=machine, dtype=BF16))
        return found[0].cpu(), found[1].cpu()


@pytest.mark.parametrize("groups", [1, 2], ids=["TP2", "EP2"])
def test_a_model_on_two_devices_has_the_bits_of_the_host(
    ranks: Ranks, tmp_path: Path, groups: int
) -> None:
    write_checkpoint(tmp_path, CONFIG, bias_range=(6.8, 7.1))
    (host, _), _ = ranks.run(2, compute, groups, tmp_path)
    for found in ranks.run(2, on_device, groups, tmp_path):
        assert all(torch.equal(a, b) for a, b in zip(found, host, strict=True))
