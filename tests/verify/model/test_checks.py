"""The layer-by-layer comparison: right models pass, and each fault is found in its own layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from glm_portable import ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import Weight
from glm_portable.verify.command import verify
from glm_portable.verify.model.checks import runners
from glm_portable.verify.model.layers import Compared, compare
from glm_portable.verify.quantised import QuantisedCheckpoint
from glm_portable.verify.subject import Subject
from glm_portable.verify.watch import Watched
from tests.random_checkpoint import (
    quantization_config,
    quantize_tensors,
    random_tensors,
    small_config,
    write_files,
)

REFERENCE = ops.load("reference")


class Faulty:
    """The reference with one op replaced; `calls` counts what the op was called for."""

    def __init__(self, name: str, body: Callable[..., Any]) -> None:
        self._name, self._body, self.calls = name, body, 0

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(REFERENCE, name)

        def call(*arguments: Any) -> Any:
            self.calls += 1
            return self._body(self.calls - 1, *arguments)

        return call


def parts(machine: Any, kind: str = "bf16", whole: bool = False) -> dict[str, Compared]:
    subject = Subject("glm-pocket", pocket.FOLDER, kind)
    models, ids = runners(subject, machine), subject.prompt(26)
    return {part.part: part for part in compare(*models, ids, decode=1, whole=whole)}


def failing(found: dict[str, Compared]) -> set[str]:
    for name, part in found.items():
        assert all(finding.startswith(f"{name}: ") for finding in part.findings)
    return {name for name, part in found.items() if part.findings}


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_a_right_model_passes_in_every_part(kind: str) -> None:
    found = parts(ops.load("cpu"), kind, whole=True)
    assert not failing(found)
    layers = {f"layer {i}" for i in range(4)}
    assert found.keys() == layers | {"layer 4 (MTP)", "MTP head", "head", "whole model"}
    assert found["layer 1"].plain.error > 1e-4  # there is rounding to compare with
    assert found["layer 0"].flips is None and found["layer 1"].flips is not None


def test_a_router_bias_in_bf16_is_found_in_every_routed_layer() -> None:
    def route(call: int, x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig) -> Any:
        return REFERENCE.route(x, gate, bias.bfloat16().float(), cfg)

    found = parts(Faulty("route", route))
    assert {"layer 1", "layer 2", "layer 3", "layer 4 (MTP)"} <= failing(found)
    for layer in ("layer 1", "layer 2", "layer 3"):
        flips = found[layer].flips
        assert flips is not None and flips.unexplained_T.any()


@pytest.mark.parametrize(("projection", "layer"), [(4, 1), (16, 3)])
def test_a_doubled_fp8_scale_is_found_in_its_layer(projection: int, layer: int) -> None:
    """`pack` is called for qkv, out, then 2 projections of an MLP or 4 of a mixture."""

    def pack(call: int, w: Weight) -> Weight:
        if call != projection or w.scale is None:
            return w
        return Weight(w.data, w.dtype, w.scale * 2, w.block, w.dynamic_activations)

    found = failing(parts(Faulty("pack", pack), "fp8"))
    assert found == {f"layer {layer}"}


def test_noise_before_a_router_excuses_no_flips() -> None:
    """A wrong attention re-routes most tokens: they must not just drop out of the comparison."""

    def attend(call: int, q: Tensor, *rest: Any) -> Tensor:
        y: Tensor = REFERENCE.attend(q, *rest)
        return y * 1.5

    assert {f"layer {i}" for i in range(4)} <= failing(parts(Faulty("attend", attend)))


def test_a_wrong_decode_step_is_found() -> None:
    def attend(call: int, q: Tensor, *rest: Any) -> Tensor:
        y: Tensor = REFERENCE.attend(q, *rest)
        return y if len(q) > 1 else -y

    assert "layer 0" in failing(parts(Faulty("attend", attend)))


def test_quantising_while_loading_equals_a_quantised_file(tmp_path: Path) -> None:
    raw = small_config(torch_dtype="bfloat16")
    tensors = random_tensors(raw)
    write_files(tmp_path / "plain", raw, tensors)
    quantised = raw | {"quantization_config": quantization_config("fp8", (0, 0))}
    write_files(tmp_path / "fp8", quantised, quantize_tensors(tensors, "fp8"))
    config = ModelConfig.load(tmp_path / "fp8")
    file = Checkpoint(tmp_path / "fp8", config, dtype=torch.bfloat16)
    loaded = QuantisedCheckpoint(tmp_path / "plain", config, dtype=torch.bfloat16)
    qkv = [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]
    both = [
        (c.weight(qkv, [128, 32, 32], 64), c.experts("model.layers.1.mlp.experts",
         ("down_proj",), 8, 64, 24), c.weight(["lm_head"], [257], 64))
        for c in (file, loaded)
    ]  # fmt: skip
    for a, b in zip(*both, strict=True):
        assert a.dynamic_activations == b.dynamic_activations
        assert torch.equal(a.data.view(torch.uint8), b.data.view(torch.uint8))
        assert (a.scale is None) == (b.scale is None)
        assert a.scale is None or b.scale is None or torch.equal(a.scale, b.scale)


def test_what_ran_is_counted() -> None:
    watched: Any = Watched(REFERENCE)
    weight = Weight(torch.ones(3, 4), torch.float32)
    with torch.inference_mode(), watched.watching():
        watched.linear(torch.ones(2, 4), weight)
    assert sum(watched.products.values()) == 1 and not watched.kernels

    def kernel() -> None: ...

    class Machine:
        def launch(self, kernel: Any, grid: Any, *arguments: Any, options: Any) -> None:
            launched.append(arguments)

    launched: list[Any] = []
    machine: Any = Machine()
    seen = Watched(machine)
    seen.launch(kernel, (1,), 5, options={})
    machine.launch(kernel, (1,), 6, options={})  # the machine itself stays as it was
    assert launched == [(5,), (6,)] and seen.kernels == {"kernel": 1}


def test_the_command_exits_with_one_on_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["model", "--backend", "cpu", "--prefill", "5", "--decode", "1",
               "--parts", "layers"]  # fmt: skip
    good = CliRunner().invoke(verify, options)
    assert good.exit_code == 0, good.output
    assert "9 checks: 9 passed" in good.output
    wrong = Faulty("silu_mul", lambda call, x, feeds: REFERENCE.silu_mul(x) * 1.05)
    monkeypatch.setattr(ops, "load", lambda name: wrong if name == "cpu" else REFERENCE)
    wrong.__dict__.update(name="wrong", device=torch.device("cpu"))
    bad = CliRunner().invoke(verify, options)
    assert bad.exit_code == 1 and "layer 0: error" in bad.output


def test_too_short_a_prompt_is_refused() -> None:
    models = runners(Subject("glm-pocket", pocket.FOLDER), REFERENCE)
    with pytest.raises(UsageError, match="3 tokens are too few for a prefill and 2 decode steps"):
        list(compare(*models, [1, 2, 3], decode=2))
