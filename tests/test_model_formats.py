"""Quantised checkpoints, the MTP layer's copies, and steps of every shape."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Glm4MoeForCausalLM

from glm_portable.model import Model
from glm_portable.ops import Step
from tests.random_checkpoint import (
    Quantize,
    dequantize_tensors,
    random_tensors,
    small_config,
    write_checkpoint,
    write_files,
)
from tests.test_model import IDS, PAGE, TOLERANCE, load_ours, prefill

CONFIG = small_config(use_qk_norm=True, routed_scaling_factor=2.5)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def run(model: Model, ids: Tensor = IDS) -> Tensor:
    step, caches = prefill(model, len(ids))
    return model.logits(model.forward(ids, step, caches))


def run_mtp(model: Model) -> Tensor:
    step, caches = prefill(model, len(IDS) - 1)
    hidden = model.forward(IDS[:-1], step, caches)
    assert model.mtp is not None
    return model.mtp_logits(model.mtp(IDS[1:], hidden, step, caches[-1]))


def round_rows(x: Tensor, kind: Quantize) -> Tensor:
    """Dynamic per-token quantisation and back, written from the compressed-tensors scheme."""
    top = 127.0 if kind == "int8" else 448.0
    scale = x.abs().max(dim=-1, keepdim=True).values / top
    y = x / scale
    return scale * (y.round() if kind == "int8" else y.to(torch.float8_e4m3fn).float())


@contextmanager
def rounded_activations(model: Any, kind: Quantize) -> Iterator[None]:
    """Round the input of every projection that a quantised checkpoint quantises."""
    quantised = {
        p.untyped_storage().data_ptr()
        for name, p in model.named_parameters()
        if "_proj" in name and not name.endswith("bias")
    }
    plain = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.untyped_storage().data_ptr() in quantised:
            x = round_rows(x, kind)
        return plain(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        yield


@pytest.mark.parametrize("kind", ["fp8", "fp8_block", "int8"])
def test_quantised_checkpoint_equals_transformers_with_rounded_activations(
    kind: Quantize, tmp_path: Path
) -> None:
    tensors = write_checkpoint(tmp_path / "quantised", CONFIG, quantize=kind)
    main = f"model.layers.{CONFIG['num_hidden_layers']}."
    plain = {k: v for k, v in dequantize_tensors(tensors).items() if not k.startswith(main)}
    write_files(tmp_path / "plain", CONFIG, plain)
    theirs: Any = Glm4MoeForCausalLM.from_pretrained(
        tmp_path / "plain",
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    with rounded_activations(theirs, kind):
        expected = theirs(IDS[None]).logits[0]
    unrounded = theirs(IDS[None]).logits[0]
    logits = run(load_ours(tmp_path / "quantised"))
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    assert (expected - unrounded).abs().max() > 100 * TOLERANCE  # the rounding is there to see


def test_mtp_copies_are_shared_when_equal_and_used_when_not(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "without", CONFIG, mtp_copies=False)
    write_checkpoint(tmp_path / "with", CONFIG, mtp_copies=True)
    tensors = random_tensors(CONFIG)
    tensors[f"model.layers.{CONFIG['num_hidden_layers']}.shared_head.head.weight"] *= 2
    write_files(tmp_path / "other", CONFIG, tensors)
    without, shared, own = (load_ours(tmp_path / n) for n in ("without", "with", "other"))
    assert shared.mtp is not None and own.mtp is not None
    assert shared.mtp.embed is shared.embed and shared.mtp.head is shared.head
    torch.testing.assert_close(run_mtp(shared), run_mtp(without), atol=0, rtol=0)
    torch.testing.assert_close(run_mtp(own), 2 * run_mtp(shared), atol=TOLERANCE, rtol=0)


def test_a_quantised_mtp_head_gives_way_to_the_model_head(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, quantize="fp8")
    model = load_ours(tmp_path)
    assert model.mtp is not None and model.mtp.head is model.head


def test_a_dropped_mtp_layer_is_tolerated(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, mtp_copies=False)
    layer = f"model.layers.{CONFIG['num_hidden_layers']}."
    write_files(tmp_path, CONFIG, {k: v for k, v in tensors.items() if not k.startswith(layer)})
    model = load_ours(tmp_path)
    assert model.mtp is None and len(model.allocate(1, PAGE)) == CONFIG["num_hidden_layers"]


@pytest.mark.parametrize("chunk", [1, 3, 7, 24])
def test_chunks_beside_other_sequences_equal_one_prefill(chunk: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    model = load_ours(tmp_path)
    others = IDS.flip(0)
    caches = model.allocate(20, PAGE)
    ours_pages, their_pages = [9, 2, 14, 3, 11, 7], [0, 8, 1, 10, 5, 4]
    rows = []
    for start in range(0, len(IDS), chunk):
        part = IDS[start : start + chunk]
        neighbour = others[start // 2 : start // 2 + 1]
        sequences = [(start // 2, 1, their_pages), (start, len(part), ours_pages)]
        step = Step.build(sequences, PAGE, model.ops.device)
        hidden = model.forward(torch.cat([neighbour, part]), step, caches)
        rows.append(model.logits(hidden[1:]))
    torch.testing.assert_close(torch.cat(rows), run(model), atol=TOLERANCE, rtol=0)


def test_float64_is_computed_in_float64(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG)
    narrow, wide = (run(load_ours(tmp_path, dtype=d)) for d in (torch.float32, torch.float64))
    assert wide.dtype == torch.float64
    difference = (wide - narrow).abs().max()
    assert 0 < difference < TOLERANCE
