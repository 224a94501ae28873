"""One rank of GLM-4.5 and of Air, traced by shapes: no refusal, and the memory of the formats.

The models have their first layers alone: one of each kind, and the MTP layer.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from glm_portable.backends.ascend import AscendOps, experts
from glm_portable.backends.ascend.chip import Chip
from glm_portable.config import ModelConfig
from glm_portable.ops import Weight
from glm_portable.virtual import npu
from glm_portable.virtual.npu.refusal import Refusal
from glm_portable.virtual.npu.shapes import META, PUBLISHED, Rank, implied_bytes
from glm_portable.virtual.npu.trace import Traced, Tracing, main, steps, trace

CONFIGS = json.loads(
    (Path(__file__).parents[1] / "data" / "published_configs.json").read_text(encoding="utf-8")
)
LAYOUTS = steps(4096, 256, 1024)
A3 = Chip.named("Ascend910_9391")
RANKS = {"TP16": Rank(16, 1), "EP16": Rank(16, 16)}


@pytest.fixture(autouse=True, scope="module")
def stand_ins() -> None:
    npu.connect("Ascend910_9391")


def short(name: str) -> ModelConfig:
    """A dense layer, a layer with experts, the MTP layer."""
    return replace(PUBLISHED[name], first_k_dense_replace=1, num_hidden_layers=2)


def run(name: str, split: str, kind: str, chip: Chip = A3) -> list[Traced]:
    return list(trace(short(name), chip, split, RANKS[split], kind, LAYOUTS))


@pytest.mark.parametrize(
    ("name", "folder"), [("glm-4.5", "zai-org/GLM-4.5"), ("air", "zai-org/GLM-4.5-Air")]
)
def test_the_models_are_the_published_ones(name: str, folder: str) -> None:
    assert PUBLISHED[name] == ModelConfig.from_dict(CONFIGS[folder])


@pytest.mark.parametrize("chip", [A3, Chip.named("Ascend950PR_9599")], ids=lambda c: c.generation)
@pytest.mark.parametrize("kind", ["bf16", "w8a8"])
@pytest.mark.parametrize("split", RANKS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_rank_is_traced(name: str, split: str, kind: str, chip: Chip) -> None:
    found = run(name, split, kind, chip)
    assert [t.step for t in found] == ["prefill 4,096", "decode 256"]
    heads, layers = 1, 3
    for t in found:
        assert t.weights == t.implied
        assert t.cache == layers * 2 * (256 * 1024) * heads * 128 * 2
        assert 0 < t.activations < 2 * 2**30
        assert t.calls["npu_fused_infer_attention_score"] == layers
        assert t.calls["npu_grouped_matmul"] == 2 * (layers - 1)
    fused = found[0].calls["npu_dequant_swiglu_quant"]
    assert fused == (1 if (kind, split) == ("w8a8", "EP16") else 0)  # 96 and 88 are no multiples
    assert found[0].activations > found[1].activations


@pytest.mark.parametrize(
    ("name", "published"),
    [("glm-4.5", 356_785_898_816), ("air", 110_468_824_832 - 2 * 151552 * 4096)],
    ids=["355B", "Air"],
)
def test_implied_bytes_are_those_of_the_published_model(name: str, published: int) -> None:
    """The numbers of test_parameter_counts, two bytes each, the router's four."""
    c = PUBLISHED[name]
    moe = c.num_hidden_layers + 1 - c.first_k_dense_replace
    router = moe * c.n_routed_experts * (c.hidden_size + 1)
    assert implied_bytes(c, Rank(), int8=False) == 2 * published + 2 * router
    for rank in RANKS.values():  # small parts are on every rank, the key/value heads on two each
        assert 1 < 16 * implied_bytes(c, rank, int8=False) / (2 * published) < 1.02


def test_w8a8_takes_half_of_what_it_rounds() -> None:
    plain, rounded = (implied_bytes(PUBLISHED["glm-4.5"], Rank(16, 16), i) for i in (False, True))
    assert 0.5 < rounded / plain < 0.53


def traced_ops() -> AscendOps:
    return AscendOps(A3, torch.ops.npu, META)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def int8_experts(ops: AscendOps, width: int) -> Callable[[], Tensor]:
    def packed(*shape: int) -> Weight:
        scale = torch.empty(*shape[:-1], 1, device=META)
        data = empty(*shape, dtype=torch.int8)
        return ops.pack(Weight(data, torch.bfloat16, scale, None, True))

    gate_up, down = packed(4, 2 * width, 256), packed(4, 256, width)
    chosen = empty(9, 2, dtype=torch.int32)
    return lambda: ops.experts(empty(9, 256), gate_up, down, empty(9, 2), chosen)


def test_a_broken_limit_is_refused_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch_npu's own shape inference lets both of these pass."""
    ops = traced_ops()
    with torch.inference_mode(), Tracing(A3):
        assert int8_experts(ops, 96)().shape == (9, 256)
        monkeypatch.setattr(experts, "GATE_ALIGNMENT", 32)
        with pytest.raises(Refusal, match="half the width of x is 96, but .* multiple of 64"):
            int8_experts(ops, 96)()
        with pytest.raises(Refusal, match="weight's rows is 64, but x has 32 columns"):
            torch.ops.npu.npu_grouped_matmul(
                [empty(8, 32)], [empty(2, 64, 32)], group_list=empty(2, dtype=torch.int64),
                group_list_type=1, group_type=0, split_item=2,
            )  # fmt: skip


def test_an_operator_without_limits_is_not_traced() -> None:
    with Tracing(A3), pytest.raises(Refusal, match="npu_rotary_mul: its limits are not written"):
        torch.ops.npu.npu_rotary_mul(empty(1, 2, 3, 64), empty(1, 2, 1, 64), empty(1, 2, 1, 64))


def test_tiles_are_tiles_in_a_trace_too() -> None:
    with Tracing(A3):
        tiles: Any = torch.ops.npu.npu_format_cast(empty(64, 32, dtype=torch.int8), 29)
        with pytest.raises(Refusal, match="FRACTAL_NZ, but only matrix products"):
            tiles.view(128, 16)


def test_memory_is_followed() -> None:
    with Tracing(A3) as mode:
        a = empty(1024)
        assert (mode.live, mode.peak) == (2048, 2048)
        view = a[1:]
        b = a + 1
        assert mode.live == 4096
        del a, b
        assert mode.live == 2048 and mode.peak == 4096
        del view
        assert mode.live == 0


def test_the_command_prints_a_table_and_refuses_what_cannot_be_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PUBLISHED, "air", short("air"))
    arguments = ["--model", "air", "--prefill", "128", "--decode", "4", "--context", "256"]
    done = CliRunner().invoke(main, [*arguments, "--calls"])
    assert done.exit_code == 0, done.output
    assert "TP16" in done.output and "EP16" in done.output and ", 0 refused." in done.output
    assert "npu_moe_gating_top_k" in done.output
    done = CliRunner().invoke(main, [*arguments, "--tp", "7"])
    assert done.exit_code == 1 and "cannot be split among 7 ranks" in done.output
