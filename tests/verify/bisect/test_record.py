"""Recorded calls give, alone, what they gave in the model."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.ops import Ops, Weight
from glm_portable.verify.bisect.parts import open_part
from glm_portable.verify.bisect.record import Record, Recorded
from glm_portable.verify.bisect.scenario import Scenario, usual_tokens
from glm_portable.verify.bisect.sweep import Machine, first_flows, run_steps
from glm_portable.verify.bisect.taught import Detour, Taught
from glm_portable.verify.call import OPS, perform
from glm_portable.verify.watch import Watched
from tests.random_checkpoint import Quantize, small_config, write_checkpoint
from tests.verify.bisect.wrong_backends import Wrong


def recorded(folder: Path, quantize: Quantize | None, ops: Any = reference) -> list[Record]:
    """A layer with experts, in two sequences of every kind of step."""
    raw = small_config(torch_dtype="bfloat16", use_qk_norm=True, first_k_dense_replace=0)
    write_checkpoint(folder, raw, quantize=quantize)
    config = ModelConfig.load(folder)
    machine = Machine("one", ops, Checkpoint(folder, config, dtype=torch.bfloat16))
    scenario = Scenario.usual(list(range(usual_tokens(8))), 8, 4)
    recorded = Recorded(Watched(ops))
    with torch.inference_mode():
        part = open_part(0, config, cast(Ops, recorded), machine.weights)
        flows = first_flows(scenario, config, machine.weights, torch.bfloat16)
        run_steps(machine, part, config, scenario, flows, recorded.start)
        assert [op for op, _ in part.places] == [r.call.op for r in recorded.records[:11]]
    return recorded.records


@pytest.mark.parametrize("quantize", [None, "fp8", "int8"])
def test_every_call_gives_the_same_alone(tmp_path: Path, quantize: Quantize | None) -> None:
    records = recorded(tmp_path, quantize)
    assert len(records) == 5 * 11 and {r.call.op for r in records} == set(OPS)
    for record in records:
        alone = perform(record.call, reference, torch.bfloat16)
        assert alone.keys() == record.results.keys()
        for name, value in record.results.items():
            assert torch.equal(alone[name], value), (record.call.op, name)


def test_inputs_are_as_they_were_before_the_call(tmp_path: Path) -> None:
    """Pages are written in place, by this call and all that follow."""
    stores = [r for r in recorded(tmp_path, None) if r.call.op == "rope_store"]
    for before, after in zip(stores, stores[1:], strict=False):
        written = before.results["k_pages"]
        assert not torch.equal(before.call.tensors["k_pages"], written)
        assert torch.equal(after.call.tensors["k_pages"], written)


def test_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    class Packs(Wrong):
        def pack(self, w: Weight) -> Weight:
            return Weight(torch.empty_like(w.data, device="meta"), w.dtype, packed=w)

        def linear(self, x: Tensor, w: Weight, bias: Any = None) -> Tensor:
            return reference.linear(x, w.packed, bias)

        def experts(self, x: Tensor, gate_up: Weight, down: Weight, *rest: Any) -> Tensor:
            return reference.experts(x, gate_up.packed, down.packed, *rest)

    records = recorded(tmp_path, "fp8", Packs())
    call = next(r.call for r in records if r.call.op == "experts")
    assert call.tensors["down"].dtype == torch.float8_e4m3fn
    assert call.tensors["down_scale"].shape == (8, 64, 1)


def test_what_ran_is_kept_with_each_call(tmp_path: Path) -> None:
    kernels = {r.call.op: dict(r.kernels) for r in recorded(tmp_path, None)}
    assert kernels["linear"].keys() == {"linear"} and not kernels["rms_norm"]


def test_another_order_of_ops_is_a_detour(tmp_path: Path) -> None:
    script = recorded(tmp_path, None)[:2]
    taught = Taught(Watched(cast(Ops, reference)))
    taught.start(script)
    with pytest.raises(Detour, match="silu_mul is called where the other model calls rms_norm"):
        taught.silu_mul(torch.ones(2, 4))
    taught.start([])
    with pytest.raises(Detour, match="calls nothing more"):
        taught.silu_mul(torch.ones(2, 4))
