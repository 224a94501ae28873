"""Two small random models through the backend on virtual chips: like GLM-4.5, and like Air.

Layer by layer (logits, routed experts, the MTP layer and its head) and in greedy text, in BF16 and
in W8A8, against the reference with the same weights.
"""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Ops, Step
from glm_portable.verify.model.layers import Runner, compare
from glm_portable.verify.watch import Watched
from glm_portable.virtual import connect
from tests.random_checkpoint import Quantize, small_config, write_checkpoint

COMMON: dict[str, Any] = dict(
    torch_dtype="bfloat16", hidden_size=128, head_dim=128, n_routed_experts=8,
    num_experts_per_tok=2, first_k_dense_replace=1,
)  # fmt: skip
CONFIGS = {
    "glm-4.5": small_config(
        **COMMON, num_attention_heads=6, use_qk_norm=True, moe_intermediate_size=64,
        intermediate_size=192, routed_scaling_factor=2.5, num_hidden_layers=2,
    ),
    "air": small_config(
        **COMMON, num_attention_heads=4, use_qk_norm=False, moe_intermediate_size=88,
        intermediate_size=136, routed_scaling_factor=1.0, num_hidden_layers=2,
    ),
}  # fmt: skip
"""88 columns are a TP16 slice of Air's 1,408: no width of the fused INT8 gate."""
CHIPS = ["Ascend910_9391", "Ascend950PR_9599"]
PROMPT = [7, 201, 33, 90, 14, 14, 3, 166, 250, 41, 5, 77, 128, 19, 64, 2, 9, 31, 240, 11, 8, 100]


@pytest.fixture(scope="module", params=[(c, k) for c in CONFIGS for k in (None, "int8")],
                ids=lambda p: f"{p[0]}, {'w8a8' if p[1] else 'bf16'}")  # fmt: skip
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose router biases are those of the real ones: large, with a small spread."""
    made = tmp_path_factory.mktemp("model")
    name, quantize = request.param
    write_checkpoint(made, CONFIGS[name], seed=3, quantize=quantize, bias_range=(6.8, 7.1))
    return made


def load(folder: Path, backend: Any, dtype: torch.dtype) -> Model:
    config = ModelConfig.load(folder)
    return Model(config, backend, Checkpoint(folder, config, dtype=dtype))


def runner(folder: Path, backend: Ops, dtype: torch.dtype) -> Runner:
    watched = Watched(backend)
    return Runner(load(folder, cast(Ops, watched), dtype), watched)


@pytest.mark.parametrize("chip", CHIPS)
def test_every_layer_the_head_and_the_mtp_layer(chip: str, folder: Path) -> None:
    machine: Any = connect("ascend", chip)
    reference = ops.load("reference")
    ours = runner(folder, machine, torch.bfloat16)
    plain, exact = (runner(folder, reference, d) for d in (torch.bfloat16, torch.float64))
    found = {p.part: p for p in compare(ours, plain, exact, PROMPT, decode=2)}
    layers = ours.model.config.num_hidden_layers
    assert {f"layer {layers} (MTP)", "MTP head", "head", "whole model", "layer 0"} <= set(found)
    assert [finding for p in found.values() for finding in p.findings] == []
    assert sum(p.flips is not None for p in found.values()) == layers  # one dense, one MTP layer
    ran = set(machine.npu._machine.ran)
    int8 = ours.model.config.quantization is not None
    fused = ours.model.config.moe_intermediate_size % 64 == 0
    assert ("npu_quant_matmul" in ran) == int8
    assert ("npu_dequant_swiglu_quant" in ran) == (int8 and fused)
    assert {"npu_moe_gating_top_k", "npu_grouped_matmul", "npu_moe_token_unpermute"} <= ran


def greedy(model: Model, count: int) -> list[int]:
    """The likeliest continuation of PROMPT, a token a step over paged keys and values."""
    page, ids = 16, list(PROMPT)
    pages = list(range(-(-(len(ids) + count) // page), 0, -1))
    caches = model.allocate(len(pages) + 1, page)
    done = 0
    with torch.inference_mode():
        while len(ids) < len(PROMPT) + count:
            step = Step.build([(done, len(ids) - done, pages)], page, torch.device("cpu"))
            hidden = model.forward(torch.tensor(ids[done:]), step, caches)
            done = len(ids)
            ids.append(int(model.logits(hidden[-1:]).argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("quantize", [None, "int8"], ids=["bf16", "w8a8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_text(name: str, quantize: Quantize | None, chip: str, tmp_path: Path) -> None:
    """Every expert is chosen, so that no rounding sends a token elsewhere."""
    config = CONFIGS[name] | {"num_experts_per_tok": CONFIGS[name]["n_routed_experts"]}
    folder = tmp_path
    write_checkpoint(folder, config, seed=3, quantize=quantize, bias_range=(6.8, 7.1))
    ours = greedy(load(folder, connect("ascend", chip), torch.bfloat16), 12)
    exact = load(folder, ops.load("reference"), torch.float64)
    theirs = greedy(exact, 12)
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
    if at is None:
        return
    # Where they part, the exact model must have seen two candidates within BF16's error.
    ids = [*PROMPT, *theirs[:at]]
    step = Step.build([(0, len(ids), range(4))], 16, torch.device("cpu"))
    with torch.inference_mode():
        hidden = exact.forward(torch.tensor(ids), step, exact.allocate(4, 16))
        logits = exact.logits(hidden[-1:])[0]
    assert (logits[theirs[at]] - logits[ours[at]]).abs() < 2**-6 * logits.abs().max()
