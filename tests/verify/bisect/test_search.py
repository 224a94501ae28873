"""Wrong backends are bisected to the right op and layer, and right ones pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.glm import GLM
from glm_portable.model import MLP
from glm_portable.ops import Ops
from glm_portable.verify.bisect import reproducer
from glm_portable.verify.bisect.parts import Flow, LayerPart, MTPPart, Opener, Part, open_part
from glm_portable.verify.bisect.reproducer import replay, save
from glm_portable.verify.bisect.scenario import Scenario, usual_tokens
from glm_portable.verify.bisect.search import Bisection, Fault
from glm_portable.verify.bisect.sweep import Machine, Sweep
from tests.random_checkpoint import Quantize, small_config, write_checkpoint
from tests.verify.bisect import wrong_backends as wrong
from tests.verify.bisect.wrong_backends import REFERENCE

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower on several, and much slower on busy ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint(folder: Path, seed: int, quantize: Quantize | None = None) -> Path:
    config = small_config(torch_dtype="bfloat16", use_qk_norm=True, num_hidden_layers=2)
    write_checkpoint(folder, config, seed=seed, quantize=quantize, bias_range=(6.8, 7.1))
    return folder


def bisection(
    folder: Path,
    b: Any,
    *,
    a: Ops = REFERENCE,
    seed: int = 0,
    dtype: torch.dtype = BF16,
    opener: Opener = open_part,
    **options: Any,
) -> Bisection:
    """Run to the end."""
    config = ModelConfig.load(folder)

    def on(name: str, backend: Ops, dtype: torch.dtype, opener: Opener = open_part) -> Machine:
        weights = Checkpoint(folder, config, dtype=dtype)
        return Machine(name, backend, weights, opener)

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (usual_tokens(24),), generator=generator).tolist()
    sweep = Sweep(
        on("a", a, dtype), on("b", b, dtype, opener), on("plain", REFERENCE, dtype),
        on("exact", REFERENCE, torch.float64), config, Scenario.usual(ids, 24, 16),
    )  # fmt: skip
    found = Bisection(sweep, **options)
    for _ in found.run():
        pass
    return found


def places(found: Bisection) -> list[tuple[str, str, str, str]]:
    return [(fault.kind, fault.who, fault.part, fault.op) for fault in found.faults]


def again(folder: Path, fault: Fault, b: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reproducer fails on the wrong backend and passes on a right one."""
    machines = {"a": REFERENCE, "b": b}
    assert save(folder, fault, {"a": "reference", "b": "wrong"}, machines, "small")
    monkeypatch.setattr(
        reproducer, "machine", lambda name: b if name == "wrong" else ops.load(name)
    )
    assert replay(folder).now.findings
    assert not replay(folder, "reference").now.findings
    assert not replay(folder, "cpu").now.findings


@pytest.mark.parametrize(
    ("backend", "part", "op", "steps"),
    [
        (wrong.SplitDecode(), "layer 0", "attend", {2, 4}),
        (wrong.ChunkBoundary(), "layer 0", "attend", {1}),
        (wrong.LastRow(), "layer 1", "experts", None),
        (wrong.CoarseBias(), "layer 1", "route", None),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, wrong.Wrong) else "",
)
def test_a_wrong_op_is_found_and_fails_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: Any,
    part: str,
    op: str,
    steps: set[int] | None,
) -> None:
    found = bisection(checkpoint(tmp_path / "model", 0), backend)
    assert places(found)[0] == ("op", "b", part, op)
    assert {o for _, _, _, o in places(found)} == {op}
    fault = found.faults[0]
    if steps is not None:
        assert {int(step.split()[1]) for step in fault.steps} <= steps
    again(tmp_path / "reproducer", fault, backend, monkeypatch)


def test_greedy_answers_do_not_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What someone who tries a few prompts sees."""
    load = ops.load
    tried: dict[str, Any] = {
        "right": REFERENCE,
        "SplitDecode": wrong.SplitDecode(),
        "ChunkBoundary": wrong.ChunkBoundary(),
        "LastRow": wrong.LastRow(),
        "CoarseBias": wrong.CoarseBias(),
    }
    monkeypatch.setattr(ops, "load", lambda name: tried.get(name) or load(name))
    answers = {}
    for name in tried:
        glm = GLM.load(backend=name, max_model_len=256)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        switch = {"enable_thinking": False}
        with glm.engine:
            answers[name] = glm.generate(
                question, temperature=0.0, max_tokens=16, chat_template_kwargs=switch
            ).content
    assert answers == dict.fromkeys(tried, "Sorry, I am too small to know that.")


def test_the_wrong_one_may_be_the_first(tmp_path: Path) -> None:
    found = bisection(checkpoint(tmp_path, 0), REFERENCE, a=wrong.backend(wrong.SplitDecode()))
    assert places(found) == [("op", "a", "layer 0", "attend")]


def test_one_scale_of_one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the weight with the largest scale is hit: the scale of one channel of one expert."""
    folder = checkpoint(tmp_path / "model", 3, "fp8")
    config = ModelConfig.load(folder)
    weights = Checkpoint(folder, config, dtype=BF16)
    scales = {
        part: weights.experts(f"model.layers.{i}.mlp.experts", ("down_proj",), 8, 64, 24).scale
        for i, part in ((1, "layer 1"), (2, "layer 2 (MTP)"))
    }
    tops = {part: scale.max().item() for part, scale in scales.items() if scale is not None}
    part = max(tops, key=lambda name: tops[name])
    backend = wrong.NarrowScale(min(tops.values()))
    found = bisection(folder, backend)
    assert places(found)[0] == ("op", "b", part, "experts")
    again(tmp_path / "reproducer", found.faults[0], backend, monkeypatch)


def test_codes_beside_right_numbers(tmp_path: Path) -> None:
    found = bisection(checkpoint(tmp_path, 0), wrong.WrongCodes())
    assert places(found)[0] == ("codes", "b", "layer 0", "linear")
    assert "q, k and v" in found.faults[0].place


def test_what_depends_on_history_is_said_to_be_right_alone(tmp_path: Path) -> None:
    backend = wrong.StalePage()
    found = bisection(checkpoint(tmp_path / "model", 0), backend)
    assert places(found)[0] == ("op", "b", "layer 0", "attend")
    machines: dict[str, Ops] = {"a": REFERENCE, "b": wrong.backend(wrong.StalePage())}
    labels = {"a": "reference", "b": "wrong"}
    assert not save(tmp_path / "reproducer", found.faults[0], labels, machines, "small")


def test_state_between_ops(tmp_path: Path) -> None:
    """The sum is right when the op returns, and overwritten before the model reads it."""
    found = bisection(checkpoint(tmp_path, 0), wrong.ReusedBuffer())
    assert [fault.kind for fault in found.faults] == ["state"]


class Scaled(MLP):
    """A shared expert that counts a little more."""

    def __init__(self, mlp: MLP) -> None:
        self.__dict__.update(mlp.__dict__)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return super().__call__(x_TD) * 1.05


def scaled_shared(i: int, config: ModelConfig, ops: Ops, weights: Checkpoint) -> Part:
    part = open_part(i, config, ops, weights)
    if isinstance(part, LayerPart) and part.moe is not None:
        part.moe.shared = Scaled(part.moe.shared)
    return part


class Unshifted(MTPPart):
    """The MTP layer gets the tokens of the step in place of those that follow."""

    def run(self, given: Flow, next_ids_T: Tensor, *rest: Any) -> Flow:
        return super().run(given, next_ids_T.roll(1), *rest)


def unshifted(i: int, config: ModelConfig, ops: Ops, weights: Checkpoint) -> Part:
    part = open_part(i, config, ops, weights)
    return Unshifted(part.mtp, part.ops) if isinstance(part, MTPPart) else part


@pytest.mark.parametrize(
    ("opener", "part", "place"),
    [
        (scaled_shared, "layer 1", "between shared expert's down projection and the part's output"),
        (unshifted, "layer 2 (MTP)", "between the part's input and norm of the embedding (enorm)"),
    ],
    ids=["shared expert", "MTP input"],
)
def test_wiring_outside_of_the_ops(tmp_path: Path, opener: Opener, part: str, place: str) -> None:
    found = bisection(checkpoint(tmp_path, 0), REFERENCE, opener=opener)
    assert places(found)[0] == ("wiring", "b", part, "")
    assert found.faults[0].place == place


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("quantize", [None, "fp8"])
def test_right_backends_have_no_faults(
    tmp_path: Path, seed: int, quantize: Quantize | None
) -> None:
    found = bisection(checkpoint(tmp_path, seed, quantize), ops.load("cpu"), seed=seed)
    assert found.faults == []
    assert found.opened.keys() == {"layer 0", "layer 1", "head", "layer 2 (MTP)"}
