"""In deterministic inference a GPU runs the same machine code for any number of tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from glm_portable.backends._gpu import GpuOps
from glm_portable.config import ModelConfig
from glm_portable.kernels.target import Target
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.cases.data import FP8, normal, quantised, weight
from glm_portable.virtual.chips import CHIPS, chip
from glm_portable.virtual.codegen.coverage import KernelKey
from glm_portable.virtual.codegen.recording import Recorder
from tests.random_checkpoint import small_config

BF16, CPU = torch.bfloat16, torch.device("cpu")
TOKENS = (1, 2, 16, 17, 33, 64, 250)
OF_INTEGERS = ("count", "place")  # which rows a tile takes: no number of the model is in them


def kernels(arch: str, alike: bool) -> dict[int, list[tuple[str, object]]]:
    """What each number of tokens launches in all ops, as Triton's own cache would know it."""
    recorder, key = Recorder(), KernelKey(chip(arch))
    ops = GpuOps("recorded", CPU, Target(arch), recorder)
    run = everything(ops.rows_alike() if alike else ops)
    found = {}
    for tokens in TOKENS:
        recorder.launches.clear()
        run(tokens)
        launches = [one for one in recorder.launches if one.name not in OF_INTEGERS]
        found[tokens] = [(one.name, key(one)) for one in launches]
    return found


def everything(ops: GpuOps) -> Callable[[int], None]:
    """All ops for so many tokens, of one sequence and of as many, in all formats of weights and
    types of pages."""
    cfg = ModelConfig.from_dict(small_config(n_routed_experts=16, num_experts_per_tok=4))
    options: list[dict[str, Any]] = [{}, {"dynamic": True}, {"dynamic": True, "block": (128, 128)}]

    def stored(*shape: int) -> list[Weight]:
        return [ops.pack(weight(*shape, dtype=BF16))] + [
            ops.pack(quantised(*shape, dtype=BF16, kind=FP8, **o)) for o in options
        ]

    flat, gate_ups, downs = stored(64, 256), stored(16, 128, 256), stored(16, 256, 64)
    gate, bias, norm = normal(16, 256), normal(16), normal(256).to(BF16)
    caches = [
        KVCache(torch.zeros(40, 64, 1, 32, dtype=kind), torch.zeros(40, 64, 1, 32, dtype=kind))
        for kind in (BF16, ops.target.fp8)
    ]

    def run(tokens: int) -> None:
        x = torch.zeros(tokens, 256, dtype=BF16)
        heads, angles = x.view(tokens, 8, 32), x[:, :16].contiguous()
        prompt = Step.build([(700, tokens, range(20))], 64, CPU)
        decode = Step.build([(700 + i, 1, range(20)) for i in range(tokens)], 64, CPU)
        weights, experts = ops.route(x, gate, bias, cfg)
        for w, gate_up, down in zip(flat, gate_ups, downs, strict=True):
            ops.linear(x, w)
            ops.experts(x, gate_up, down, weights, experts)
            ops.rms_norm(x, norm, 1e-5, x, w)
            ops.silu_mul(x)
        for cache in caches:
            for step in (prompt, decode):
                ops.rope_store(heads, heads[:, :1], heads[:, :1], angles, angles, cache, step)
                ops.attend(heads, cache, step, 1.0)

    return run


@pytest.mark.parametrize("arch", CHIPS)
def test_any_number_of_tokens_runs_one_machine_code(arch: str) -> None:
    found = kernels(arch, alike=True)
    names = {name for name, _ in found[1]}
    assert names == {
        "attend", "choose", "combine", "gate", "grouped_gemm", "quantize", "rms_norm",
        "rope_store", "silu_mul",
    }  # fmt: skip
    for tokens in TOKENS[1:]:
        assert found[tokens] == found[1], tokens


def test_without_it_the_number_of_tokens_chooses() -> None:
    found = kernels("gfx942", alike=False)
    assert found[250] != found[1]
    assert "merge" in {name for name, _ in found[1]}
