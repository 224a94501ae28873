"""Checkpoints that failed on Ascend in the field, through the backend on a virtual A3."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import GLM, UsageError, formats, ops, pocket
from glm_portable.backends import ascend, reference
from glm_portable.backends.ascend import AscendOps
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Step
from glm_portable.verify.metrics import faults
from glm_portable.virtual.npu.semantics import KERNELS
from tests.modelslim_checkpoint import (
    lose_router_biases,
    modelslim_tensors,
    write_modelslim,
)
from tests.random_checkpoint import small_config, write_checkpoint

A3 = "Ascend910_9391"
BF16 = torch.bfloat16
GiB = 2**30
# Every expert is chosen, so that rounding re-routes no token.
CONFIG = small_config(
    torch_dtype="bfloat16", hidden_size=64, head_dim=128, num_attention_heads=2,
    num_key_value_heads=1, use_qk_norm=True, moe_intermediate_size=64, n_routed_experts=4,
    num_experts_per_tok=4, num_hidden_layers=2, routed_scaling_factor=2.5,
)  # fmt: skip
MTP = "model.layers.2"


def outputs(folder: Path, backend: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(logits, MTP logits) of a few tokens."""
    config = ModelConfig.load(folder)
    model = Model(config, backend, Checkpoint(folder, config, dtype=dtype))
    ids = torch.tensor([3, 99, 41, 7, 200, 5])
    step = Step.build([(0, len(ids), [1])], 16, torch.device("cpu"))
    caches = model.allocate(2, 16)
    with torch.inference_mode():
        hidden = model.forward(ids, step, caches)
        assert model.mtp is not None
        drafted = model.mtp(ids.roll(-1), hidden, step, caches[-1])
        return model.logits(hidden), model.mtp_logits(drafted)


@pytest.mark.parametrize("form", ["copies", "short name", "none"])
def test_published_w8a8_with_every_form_of_the_mtp_head(
    form: str, a3: AscendOps, tmp_path: Path
) -> None:
    """vllm-ascend#3520: no key for fused q, k, v; #5794: none for model.layers.92.head.weight."""
    tensors, tags = modelslim_tensors(CONFIG, mtp_copies=form != "none")
    if form == "short name":
        long = f"{MTP}.shared_head.head.weight"
        tensors[f"{MTP}.head.weight"] = tensors.pop(long)
        tags[f"{MTP}.head.weight"] = tags.pop(long)
    write_modelslim(tmp_path, CONFIG, tensors, tags)
    found = outputs(tmp_path, a3, BF16)
    exact = outputs(tmp_path, ops.load("reference"), torch.float64)
    plain = outputs(tmp_path, ops.load("reference"), BF16)
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert faults(ours, theirs, right) == []
    ran = a3.npu._machine.ran
    assert ran["npu_quant_matmul"] == 4  # q, k, v in one, and o, of the two main layers
    assert ran["npu_dequant_swiglu_quant"] == 1


def test_w8a8_without_its_router_biases_is_refused_by_name(a3: AscendOps, tmp_path: Path) -> None:
    """What msmodelslim 26.1.0 writes; routed by zeros it would answer, and wrongly."""
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(tmp_path, CONFIG, lose_router_biases(tensors), tags)
    with pytest.raises(UsageError, match="e_score_correction_bias"):
        outputs(tmp_path, a3, BF16)


def fp8_checkpoint(folder: Path) -> Path:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((pocket.FOLDER / file).read_bytes())
    config = CONFIG | {"vocab_size": 1280, "eos_token_id": [1237, 1244, 1246]}
    write_checkpoint(folder, config, quantize="fp8")
    return folder


def test_an_fp8_checkpoint_becomes_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zai-org/GLM-4.5#147: it started on a 910B and printed garbage; vllm-ascend#3464: KeyError."""
    folder = fp8_checkpoint(tmp_path)
    notes: list[str] = []
    config = ModelConfig.load(folder)
    opened = Checkpoint(folder, config, dtype=BF16)
    sizes = {target: opened.loaded_bytes(target) for target in formats.TARGETS}

    def load(free: int, **options: Any) -> GLM:
        monkeypatch.setattr("glm_portable.glm.available_memory", lambda: free)
        return GLM.load(folder, virtual=A3, on_note=notes.append, **options)

    plain = load(10 * GiB)
    said = notes.pop()
    for target in formats.TARGETS:
        assert f"{target} takes {sizes[target] / GiB:,.1f} GiB" in said
    assert "backend ascend does not run" in said and said.endswith("loading bf16.")
    little = load(int(sizes["w8a8"] / formats.ROOM) + 1)
    assert notes[0].endswith("loading w8a8.")
    ids = [5, 900, 31, 77]
    for found, kind in ((plain, "bf16"), (little, "w8a8")):
        right, rounded = (
            GLM.load(folder, backend="reference", dtype=d, quantization=kind)
            for d in ("float64", "bfloat16")
        )
        assert faults(found.logits(ids), rounded.logits(ids), right.logits(ids)) == []
    with pytest.raises(UsageError, match="the weights are fp8, .* take more devices"):
        load(1000)
    with pytest.raises(UsageError, match="quantization 'fp8' is not one of bf16, w8a8"):
        load(10 * GiB, quantization="fp8")


@pytest.mark.parametrize("count", [160, 128], ids=["GLM-4.5", "Air"])
def test_the_router_of_one_group(count: int, a3: AscendOps) -> None:
    """vllm-ascend PR#2958: the operator was called for 8 groups of 256 experts alone."""
    cfg = ModelConfig.from_dict(
        small_config(n_routed_experts=count, num_experts_per_tok=8, routed_scaling_factor=2.5)
    )
    g = torch.Generator().manual_seed(0)
    x = torch.randn(33, 64, generator=g).to(BF16)
    gate, bias = torch.randn(count, 64, generator=g) / 8, 6.8 + 0.3 * torch.rand(count, generator=g)
    weights, chosen = a3.route(x, gate, bias, cfg)
    right, order = reference.route(x, gate, bias, cfg)
    assert torch.equal(chosen, order) and chosen.dtype == torch.int32
    torch.testing.assert_close(weights, right, rtol=1e-6, atol=0)
    assert a3.npu._machine.ran["npu_moe_gating_top_k"] == 1


def called(folder: Path) -> set[str]:
    """The operators of torch_npu that the backend calls by name."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("npu_")
    }


def test_no_operator_is_called_whose_meaning_is_not_written_down() -> None:
    """Nor npu_moe_finalize_routing, which "will lead to accuracy issues" (vllm-ascend)."""
    assert called(Path(ascend.__file__).parent) == set(KERNELS)
