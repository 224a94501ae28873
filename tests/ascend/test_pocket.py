"""The pocket model through the backend on virtual chips: logits, routed experts, text, MTP."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import GLM, ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model, Trace
from glm_portable.ops import Step
from glm_portable.verify.metrics import K, distance, faults
from glm_portable.virtual import NPUS, connect
from tests.random_checkpoint import small_config, write_checkpoint

QUESTION = [{"role": "user", "content": "Who are you?"}]
CHIPS = list(NPUS)
PAGE = 16
USED = {
    "npu_rms_norm", "npu_add_rms_norm", "npu_swiglu", "npu_mrope", "npu_scatter_pa_kv_cache",
    "npu_fused_infer_attention_score", "npu_moe_gating_top_k", "npu_moe_init_routing_v2",
    "npu_grouped_matmul", "npu_moe_token_unpermute",
}  # fmt: skip
USED_BY_W8A8 = {"npu_dynamic_quant", "npu_quant_matmul", "npu_format_cast"}


def model_of(folder: Path, backend: Any, dtype: torch.dtype) -> Model:
    config = ModelConfig.load(folder)
    return Model(config, backend, Checkpoint(folder, config, dtype=dtype))


def outputs(model: Model, ids: list[int], trace: Trace | None = None) -> tuple[Tensor, Tensor]:
    """(logits, MTP logits) of one sequence, on pages out of order."""
    pages = -(-len(ids) // PAGE)
    step = Step.build([(0, len(ids), list(range(pages, 0, -1)))], PAGE, torch.device("cpu"))
    caches = model.allocate(pages + 1, PAGE)
    with torch.inference_mode():
        tokens = torch.tensor(ids)
        hidden = model.forward(tokens, step, caches, trace)
        assert model.mtp is not None
        drafted = model.mtp(tokens.roll(-1), hidden, step, caches[-1])
        return model.logits(hidden), model.mtp_logits(drafted)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    glm = GLM.load(backend="reference", dtype="float32")
    prompt = list(glm.chat.encode(QUESTION).token_ids)
    return prompt + list(glm.generate(prompt, temperature=0.0, max_tokens=24).token_ids)


@pytest.mark.parametrize("chip", CHIPS)
def test_logits_experts_and_mtp_of_the_pocket_model(chip: str, ids: list[int]) -> None:
    machine: Any = connect("ascend", chip)
    right, ours = Trace(), Trace()
    exact = outputs(model_of(pocket.FOLDER, ops.load("reference"), torch.float64), ids, right)
    plain = outputs(model_of(pocket.FOLDER, ops.load("reference"), torch.bfloat16), ids)
    found = outputs(model_of(pocket.FOLDER, machine, torch.bfloat16), ids, ours)
    for a, p, e in zip(found, plain, exact, strict=True):
        assert faults(a, p, e) == []
    changed = [
        (experts.sort(-1).values != ours.routed[layer][1].sort(-1).values).any(-1)
        for layer, (_, experts) in right.routed.items()
    ]
    flips = torch.cat(changed)
    assert flips.float().mean() < 0.05
    assert set(machine.npu._machine.ran) == USED


def test_greedy_text_through_the_engine(ids: list[int]) -> None:
    expected = GLM.load(backend="reference", dtype="bfloat16")
    found = GLM.load(backend="ascend", virtual="Ascend910_9391")
    prompt = list(expected.chat.encode(QUESTION).token_ids)
    count = len(ids) - len(prompt)
    ours = found.generate(prompt, temperature=0.0, max_tokens=count).token_ids
    theirs = expected.generate(prompt, temperature=0.0, max_tokens=count).token_ids
    if ours == theirs:
        return
    # Where they part, the reference must have seen two candidates within BF16's error.
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    logits = expected.logits([*prompt, *theirs[:at]])[-1]
    assert (logits[theirs[at]] - logits[ours[at]]).abs() < 2**-7 * logits.abs().max()


def quantised_pocket(folder: Path) -> Path:
    """Published W8A8's scheme: projections and experts INT8 per channel, the rest plain."""
    config = small_config(
        hidden_size=128, head_dim=128, num_attention_heads=4, num_key_value_heads=2,
        moe_intermediate_size=64, intermediate_size=192, n_routed_experts=8,
        num_experts_per_tok=8, use_qk_norm=True, routed_scaling_factor=2.5,
        torch_dtype="bfloat16",
    )  # fmt: skip
    write_checkpoint(folder, config, quantize="int8", bias_range=(6.8, 7.1))
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
    return folder


@pytest.mark.parametrize("chip", CHIPS)
def test_w8a8_against_the_reference_with_the_same_weights(chip: str, tmp_path: Path) -> None:
    folder = quantised_pocket(tmp_path)
    machine: Any = connect("ascend", chip)
    tokens = torch.randint(0, 250, (40,), generator=torch.Generator().manual_seed(5)).tolist()
    exact = outputs(model_of(folder, ops.load("reference"), torch.float64), tokens)
    plain = outputs(model_of(folder, ops.load("reference"), torch.bfloat16), tokens)
    found = outputs(model_of(folder, machine, torch.bfloat16), tokens)
    for a, p, e in zip(found, plain, exact, strict=True):
        assert faults(a, p, e) == []
    ran = set(machine.npu._machine.ran)
    assert ran == USED | USED_BY_W8A8 | {"npu_dequant_swiglu_quant"}


def test_the_pocket_model_requantised_to_w8a8(ids: list[int]) -> None:
    """The whole loading path of `--quantization w8a8`, against the reference on the same codes."""
    found = GLM.load(backend="ascend", virtual="Ascend910B1", quantization="w8a8")
    exact, plain = (
        GLM.load(backend="reference", dtype=d, quantization="w8a8") for d in ("float64", "bfloat16")
    )
    for name in ("logits", "mtp_logits"):
        a, p, e = (getattr(glm, name)(ids) for glm in (found, plain, exact))
        ours, theirs = distance(a, e), distance(p, e)
        assert ours.error <= K * theirs.error and abs(ours.slope - 1) < 0.01
    assert USED_BY_W8A8 <= set(found.model.ops.npu._machine.ran)  # type: ignore[attr-defined]
