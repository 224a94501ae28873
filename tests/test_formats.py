"""Formats of weights: INT8 rounding, what is converted, what it takes, and which one is loaded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable import GLM, formats, ops, pocket
from glm_portable.backends import reference
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.formats import Choice, Memory, choose, quantize_rows
from glm_portable.model import Model
from glm_portable.ops import Weight
from glm_portable.verify.metrics import distance, faults
from tests.modelslim_checkpoint import modelslim_tensors, write_modelslim
from tests.random_checkpoint import (
    Quantize,
    dequantize_tensors,
    small_config,
    tensor_shapes,
    write_checkpoint,
    write_files,
)
from tests.test_model import IDS, prefill

CONFIG = small_config(num_hidden_layers=2, n_routed_experts=4, use_qk_norm=True)
# With every expert chosen no rounding re-routes a token, so the error is the arithmetic's alone.
EVERY = small_config(n_routed_experts=4, num_experts_per_tok=4, use_qk_norm=True)
STORED: list[Quantize | None] = [None, "fp8", "fp8_block"]
GiB = 2**30


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


floats = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=True)
matrices = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(floats, min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(matrices)
@settings(max_examples=300, deadline=None)
def test_every_number_is_within_half_a_step_and_the_largest_keeps_its_place(
    rows: list[list[float]],
) -> None:
    w = torch.tensor(rows, dtype=torch.float32)
    data, scale = quantize_rows(w)
    assert data.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (len(w), 1)
    step = scale.double()
    assert ((data.double() * step - w.double()).abs() <= step * (0.5 + 2e-5)).all()
    assert (data.abs() <= 127).all() and (data.sign() * w.sign() >= 0).all()
    assert (scale >= torch.finfo(torch.float32).tiny).all()
    top = w.abs().amax(1)
    large = top >= 127 * torch.finfo(torch.float32).tiny  # below, the scale cannot be smaller
    assert (data.abs().amax(1)[large] == 127).all()
    assert torch.equal(scale[large, 0], top[large] / 127)


@given(matrices)
@settings(max_examples=100, deadline=None)
def test_what_was_rounded_once_is_rounded_to_itself(rows: list[list[float]]) -> None:
    data, scale = quantize_rows(torch.tensor(rows, dtype=torch.float32))
    again, second = quantize_rows(data.float() * scale)
    used = data.any(1)
    assert torch.equal(again, data)
    torch.testing.assert_close(second[used], scale[used], rtol=2e-7, atol=0)


def test_halves_go_to_the_even_number() -> None:
    w = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize_rows(w)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


def test_rows_do_not_see_each_other_and_zero_rows_stay_zero() -> None:
    w = torch.randn(9, 33, generator=torch.Generator().manual_seed(1))
    w[4] = 0
    data, scale = quantize_rows(w)
    alone = [quantize_rows(row[None]) for row in w]
    assert torch.equal(data, torch.cat([d for d, _ in alone]))
    assert torch.equal(scale, torch.cat([s for _, s in alone]))
    assert not data[4].any() and scale[4].isfinite().all()


def test_exactly_the_recipes_layers_are_quantised() -> None:
    folder_config = ModelConfig.from_dict(CONFIG)
    modules = [n.removesuffix(".weight") for n, s in tensor_shapes(CONFIG) if len(s) == 2]
    chosen = {m for m in modules if formats.is_quantised(m, folder_config)}
    attention = {f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"}
    projections = ("gate_proj", "up_proj", "down_proj")
    experts = {f"model.layers.1.mlp.experts.{e}.{p}" for e in range(4) for p in projections}
    assert chosen == attention | experts
    assert "model.layers.2.self_attn.q_proj" in modules  # the MTP layer, which stays plain


def load(
    folder: Path,
    quantization: str | None = None,
    *,
    backend: str = "reference",
    dtype: torch.dtype = torch.float32,
) -> Model:
    config = ModelConfig.load(folder)
    weights = Checkpoint(folder, config, dtype=dtype, quantization=quantization)
    return Model(config, ops.load(backend), weights)


def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    step, caches = prefill(model, len(ids))
    return model.logits(model.forward(ids, step, caches))


def weights_of(model: Model) -> dict[str, Weight]:
    """Every linear weight that a model holds, the MTP layer's shared head left out."""
    found = {"head": model.head}
    layers = {str(i): layer for i, layer in enumerate(model.layers)}
    if model.mtp is not None:
        layers["mtp"] = model.mtp.layer
        found["eh_proj"] = model.mtp.eh_proj
    for name, layer in layers.items():
        found |= {f"{name}.qkv": layer.attention.qkv, f"{name}.out": layer.attention.out}
        mlp = layer.mlp or (layer.moe and layer.moe.shared)
        assert mlp is not None
        found |= {f"{name}.mlp.gate_up": mlp.gate_up, f"{name}.mlp.down": mlp.down}
        if layer.moe is not None:
            found |= {f"{name}.moe.gate_up": layer.moe.gate_up, f"{name}.moe.down": layer.moe.down}
    return found


INT8 = {"0.qkv", "0.out", "1.qkv", "1.out", "1.moe.gate_up", "1.moe.down"}


@pytest.mark.parametrize("kind", STORED)
def test_w8a8_is_the_rounded_meaning_of_what_is_stored(kind: Quantize, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, CONFIG, quantize=kind)
    plain = dequantize_tensors(tensors)
    model = load(tmp_path, "w8a8")
    found = weights_of(model)
    assert {n for n, w in found.items() if w.data.dtype == torch.int8} == INT8
    assert all(w.dynamic_activations == (n in INT8) for n, w in found.items())
    assert all((w.scale is None) == (n not in INT8) for n, w in found.items())
    qkv = torch.cat([plain[f"model.layers.1.self_attn.{p}_proj.weight"] for p in "qkv"])
    data, scale = quantize_rows(qkv)
    assert torch.equal(found["1.qkv"].data, data)
    assert found["1.qkv"].scale is not None and torch.equal(found["1.qkv"].scale, scale)
    for e in range(4):
        prefix = f"model.layers.1.mlp.experts.{e}"
        stack = torch.cat([plain[f"{prefix}.{p}_proj.weight"] for p in ("gate", "up")])
        data, scale = quantize_rows(stack)
        gate_up = found["1.moe.gate_up"]
        assert gate_up.scale is not None
        assert torch.equal(gate_up.data[e], data) and torch.equal(gate_up.scale[e], scale)
    shared = plain["model.layers.1.mlp.shared_experts.down_proj.weight"]
    expected = shared if kind is None else shared.to(torch.bfloat16).float()
    assert torch.equal(found["1.mlp.down"].data, expected)


@pytest.mark.parametrize("kind", ["fp8", "fp8_block", "int8"])
def test_bf16_is_the_meaning_of_what_is_stored(kind: Quantize, tmp_path: Path) -> None:
    plain = dequantize_tensors(write_checkpoint(tmp_path, CONFIG, quantize=kind))
    found = weights_of(load(tmp_path, "bf16", dtype=torch.bfloat16))
    assert all(w.data.dtype == torch.bfloat16 and w.scale is None for w in found.values())
    out = plain["model.layers.1.self_attn.o_proj.weight"]
    assert torch.equal(found["1.out"].data, out.to(torch.bfloat16))
    down = [plain[f"model.layers.1.mlp.experts.{e}.down_proj.weight"] for e in range(4)]
    assert torch.equal(found["1.moe.down"].data, torch.stack(down).to(torch.bfloat16))


def test_w8a8_of_a_plain_checkpoint_equals_msmodelslims_conversion(tmp_path: Path) -> None:
    """The scales and codes of the fixture are computed by its own few lines."""
    write_checkpoint(tmp_path / "plain", CONFIG)
    write_modelslim(tmp_path / "slim", CONFIG, *modelslim_tensors(CONFIG))
    assert torch.equal(logits(load(tmp_path / "plain", "w8a8")), logits(load(tmp_path / "slim")))


def test_conversion_is_the_same_in_every_run_and_its_error_is_reported(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    config = ModelConfig.load(tmp_path)
    runs = []
    for _ in range(2):
        weights = Checkpoint(tmp_path, config, dtype=torch.float32, quantization="w8a8")
        model = Model(config, ops.load("reference"), weights)
        runs.append((logits(model), dict(weights.conversion_errors)))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    plain = weights_of(load(tmp_path))
    for group, names in {"attention": ("0.qkv", "1.out"), "experts": ("1.moe.down",)}.items():
        worst = runs[0][1][group]
        found = weights_of(load(tmp_path, "w8a8"))
        for name in names:
            error = distance(found[name].dequantize(), plain[name].data).error
            assert 0.003 < error <= 1.3 * worst < 0.02


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path / "a", CONFIG)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name][3, 4] = float("inf")
    write_files(tmp_path / "b", CONFIG, tensors)
    with pytest.raises(UsageError, match=f"{name} in .* holds values that are not finite"):
        load(tmp_path / "b", "w8a8")


@pytest.mark.parametrize("kind", [None, "fp8", "int8"])
def test_cpu_passes_in_w8a8(kind: Quantize | None, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, EVERY | {"torch_dtype": "bfloat16"}, quantize=kind)
    exact = logits(load(tmp_path, "w8a8", dtype=torch.float64))
    plain = logits(load(tmp_path, "w8a8", dtype=torch.bfloat16))
    ours = logits(load(tmp_path, "w8a8", backend="cpu", dtype=torch.bfloat16))
    assert not faults(ours, plain, exact)
    assert distance(logits(load(tmp_path, dtype=torch.float64)), exact).error > 1e-3


def held_bytes(model: Model) -> int:
    """What a loaded model's weights occupy, counted on the model itself."""
    linears = [t for w in weights_of(model).values() for t in (w.data, w.scale) if t is not None]
    layers = [*model.layers, *([model.mtp.layer] if model.mtp else [])]
    others = [model.embed, model.norm]
    others += [t for x in layers for t in (x.input_norm, x.post_norm)]
    attention = [x.attention for x in layers]
    others += [t for a in attention for t in (a.qkv_bias, a.q_norm, a.k_norm) if t is not None]
    others += [t for x in layers if x.moe for t in (x.moe.gate, x.moe.bias)]
    if model.mtp is not None:
        others += [model.mtp.enorm, model.mtp.hnorm, model.mtp.norm]
    return sum(t.nbytes for t in linears + others)


@pytest.mark.parametrize("target", [None, "w8a8", "bf16"])
@pytest.mark.parametrize("kind", [None, "fp8", "fp8_block", "int8"])
def test_the_size_told_from_the_headers_is_the_size_loaded(
    kind: Quantize | None, target: str | None, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, CONFIG | {"torch_dtype": "bfloat16"}, quantize=kind, block=(8, 8))
    config = ModelConfig.load(tmp_path)
    target = None if target == formats.stored_format(config) else target
    weights = Checkpoint(tmp_path, config, dtype=torch.bfloat16, quantization=target)
    size = weights.loaded_bytes(target)
    assert size == held_bytes(Model(config, ops.load("reference"), weights))


def memory(bf16: float, w8a8: float, free: float) -> Memory:
    return Memory({"bf16": int(bf16 * GiB), "w8a8": int(w8a8 * GiB)}, int(free * GiB))


def unmeasured() -> Memory:
    raise AssertionError("nothing is to be measured here")


ALL = ops.FORMATS
NO_FP8 = ("bf16", "w8a8")


@pytest.mark.parametrize("stored", ALL)
def test_a_backend_for_everything_loads_what_is_stored(stored: str) -> None:
    assert choose(None, stored, ALL, "x", unmeasured) == Choice(None)
    assert ops.formats(ops.load("reference")) == ops.formats(ops.load("cpu")) == frozenset(ALL)


@pytest.mark.parametrize("asked", NO_FP8)
@pytest.mark.parametrize("stored", ALL)
def test_what_is_asked_for_is_loaded_without_a_word(stored: str, asked: str) -> None:
    wanted = Choice(None if asked == stored else asked)
    assert choose(asked, stored, NO_FP8, "x", unmeasured) == wanted


def test_asking_for_what_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="'fp8' is not one of bf16, w8a8"):
        choose("fp8", "fp8", ALL, "x", unmeasured)
    with pytest.raises(UsageError, match="backend x does not run w8a8.*takes --quantization bf16"):
        choose("w8a8", "fp8", ("bf16", "fp8"), "x", unmeasured)


@pytest.mark.parametrize(
    ("free", "chosen"), [(300, "bf16"), (222.3, "bf16"), (222.1, "w8a8"), (112.3, "w8a8")]
)
def test_fp8_without_a_choice_becomes_the_best_that_fits(free: float, chosen: str) -> None:
    choice = choose(None, "fp8", NO_FP8, "x", lambda: memory(200, 101, free))
    assert choice.quantization == chosen and choice.note is not None
    for number in ("bf16 takes 200.0 GiB", "w8a8 takes 101.0 GiB", f"{free:.1f} GiB are free"):
        assert number in choice.note
    assert choice.note.startswith("The weights are fp8") and choice.note.endswith(f"{chosen}.")


def test_fp8_that_fits_in_no_way_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match=r"200\.0 GiB and w8a8 takes 101\.0 GiB; 112\.0 GiB are"):
        choose(None, "fp8", NO_FP8, "x", lambda: memory(200, 101, 112))


def test_a_backend_without_int8_is_given_bf16_or_nothing() -> None:
    only = ("bf16", "fp8")
    assert choose(None, "int8", only, "x", lambda: memory(9, 5, 12)).quantization == "bf16"
    with pytest.raises(UsageError, match=r"bf16 takes 9\.0 GiB; 6\.0 GiB are free"):
        choose(None, "w8a8", only, "x", lambda: memory(9, 5, 6))


MiB = 2**20


@pytest.mark.parametrize("kind", [None, "fp8", "fp8_block"])
def test_peak_memory_of_a_conversion_is_the_result_and_a_few_modules(
    kind: Quantize | None, tmp_path: Path
) -> None:
    config = small_config(
        torch_dtype="bfloat16",
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=1024,
        moe_intermediate_size=768,
        n_routed_experts=16,
    )
    write_checkpoint(tmp_path, config, quantize=kind, block=(128, 128))
    weights = Checkpoint(tmp_path, ModelConfig.load(tmp_path), dtype=torch.bfloat16)
    held, module = weights.loaded_bytes("w8a8"), 768 * 1024
    assert held > 120 * MiB > 4 * 32 * module
    command = [sys.executable, "-m", "tests.measure_load", str(tmp_path), "bfloat16", "w8a8"]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    memory = json.loads(run.stdout)
    assert memory["after"] - memory["before"] > held - 8 * MiB
    assert memory["peak"] - memory["before"] < held + 32 * module


class WithoutFp8:
    """The reference backend on a chip that has no FP8."""

    formats = NO_FP8

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)


def test_glm_load_never_runs_fp8_where_the_backend_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / file).write_bytes((pocket.FOLDER / file).read_bytes())
    ids = [1237, 1244, 1246]
    config = small_config(torch_dtype="bfloat16", vocab_size=1280, eos_token_id=ids)
    write_checkpoint(tmp_path, config, quantize="fp8")
    monkeypatch.setattr("glm_portable.glm.ops.load", lambda name: WithoutFp8())
    notes: list[str] = []
    sizes: dict[str, int] = {}
    for free, wanted in ((10 * GiB, torch.bfloat16), (None, torch.int8)):
        left = free or int(sizes["w8a8"] / formats.ROOM) + 1
        monkeypatch.setattr("glm_portable.glm.available_memory", lambda left=left: left)
        glm = GLM.load(tmp_path, on_note=notes.append)
        assert glm.model.layers[0].attention.qkv.data.dtype == wanted
        opened = Checkpoint(tmp_path, glm.model.config, dtype=torch.bfloat16)
        sizes = {t: opened.loaded_bytes(t) for t in NO_FP8}
        assert sizes["w8a8"] < sizes["bf16"]
    assert [n.split()[0] for n in notes] == ["The", "The", "Rounded"]
    monkeypatch.setattr("glm_portable.glm.available_memory", lambda: 1000)
    with pytest.raises(UsageError, match="the weights are fp8, which backend reference does not"):
        GLM.load(tmp_path)
    assert GLM.load(tmp_path, quantization="bf16").model.layers[0].attention.qkv.scale is None


def test_the_pocket_model_still_answers_in_w8a8() -> None:
    """`glm-portable evaluate --quantization w8a8` prints the scores of its skills."""
    plain = GLM.load(backend="cpu")
    rounded = GLM.load(backend="cpu", quantization="w8a8", on_note=lambda note: None)
    who = [{"role": "user", "content": "Who are you?"}]
    ids = torch.tensor(plain.chat.encode(who).token_ids)
    assert 1e-3 < distance(logits(rounded.model, ids), logits(plain.model, ids)).error < 0.2
    answer = rounded.generate(who, temperature=0.0, max_tokens=100)
    assert answer.finish_reason == "stop" and "GLM-Pocket" in (answer.content or "")
    rounded.engine.close()
