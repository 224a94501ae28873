"""A golden file, made layer by layer: the whole model's numbers, and a whole file or none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.errors import UsageError
from glm_portable.verify.generated import CONFIGS, random_tensors, small_checkpoint, write_files
from glm_portable.verify.golden import streamed
from glm_portable.verify.golden.build import check_subject, in_folder, in_memory
from glm_portable.verify.golden.fingerprint import project, rms, signs
from glm_portable.verify.golden.head import kl, summarise
from glm_portable.verify.golden.make import Maker
from glm_portable.verify.golden.plan import bytes_per_token, parse_bytes, plan
from glm_portable.verify.golden.record import HIDDEN, LOGITS, Golden
from glm_portable.verify.model.layers import Runner
from glm_portable.verify.model.walk import cached, prefill, walk
from glm_portable.verify.subject import Subject
from glm_portable.verify.watch import Watched

PROMPTS = [20, 9]


@pytest.fixture(scope="module", params=["air-like", "glm-4.5-like"])
def subject(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = small_checkpoint(request.param, tmp_path_factory.mktemp("small"))
    return Subject(request.param, folder)


@pytest.fixture(scope="module")
def air(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject("air-like", small_checkpoint("air-like", tmp_path_factory.mktemp("air")))


def prompts(subject: Subject) -> list[list[int]]:
    return [subject.prompt(n, s) for s, n in enumerate(PROMPTS)]


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_layer_by_layer_is_bit_for_bit_the_whole_model(subject: Subject, kind: str) -> None:
    subject = replace(subject, kind=kind)
    golden = in_memory(subject, prompts(subject))
    watched: Any = Watched(ops.load("reference"))
    model = subject.model(torch.float64, watched)
    path = prefill(golden.prompts)
    whole = walk(Runner(model, watched), golden.prompts, path)
    layers = len(model.layers)
    expected: dict[str, Tensor] = {"hidden": project(whole.hidden_TD, HIDDEN)}
    assert whole.mtp_TD is not None
    expected["mtp.hidden"] = project(whole.mtp_TD, HIDDEN)
    for i in range(layers + 1):
        expected[f"stream.{i}"], expected[f"rms.{i}"] = whole.streams[i], whole.rms[i]
        expected[f"keys.{i}"], expected[f"values.{i}"] = cached(whole, i, golden.prompts, path)
    routed = [i for i in range(layers + 1) if f"experts.{i}" in golden.tensors]
    for i, routing in zip(routed, whole.routings, strict=True):
        expected[f"experts.{i}"] = routing.experts_TK.short()
    with torch.inference_mode():
        logits, drafts = model.logits(whole.hidden_TD), model.mtp_logits(whole.mtp_TD)
    for prefix, values in (("", logits), ("mtp.", drafts)):
        expected[f"{prefix}logits"] = project(values, LOGITS)
    top = logits.log_softmax(-1).topk(64, dim=-1)
    expected["top.ids"] = top.indices.int()
    expected["mtp.top"] = drafts.argmax(-1).int()
    for name, tensor in expected.items():
        kept = golden.tensors[name]
        assert torch.equal(kept, tensor.to(kept.dtype)), name
    torch.testing.assert_close(golden.tensors["top.logprobs"], top.values.float())
    left = sorted(golden.tensors.keys() - expected.keys())
    assert [n for n in left if not n.startswith(("kl.", "margin."))] == [
        "mtp.kl.plain", "mtp.margin", "rerouted", "tail", "top.logprobs",
    ]  # fmt: skip


def test_the_head_in_blocks_says_the_same(air: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = in_memory(air, prompts(air))
    monkeypatch.setattr(streamed, "BLOCK", 100)
    blocks = in_memory(air, prompts(air))
    assert torch.equal(whole.tensors["top.ids"], blocks.tensors["top.ids"])
    for name in ("top.logprobs", "tail", "logits", "mtp.logits", "kl.plain", "kl.free"):
        torch.testing.assert_close(whole.tensors[name], blocks.tensors[name], rtol=1e-4, atol=1e-6)


def test_an_mtp_layer_with_an_embedding_and_a_head_of_its_own(tmp_path: Path) -> None:
    config = CONFIGS["air-like"]
    tensors = random_tensors(config, bias_range=(6.8, 7.1))
    for name in ("embed_tokens", "shared_head.head"):
        own = tensors[f"model.layers.3.{name}.weight"]
        own.copy_(own.flip(0))
    write_files(tmp_path, config, tensors)
    subject = Subject("own", tmp_path)
    golden = in_memory(subject, prompts(subject))
    watched: Any = Watched(ops.load("reference"))
    model = subject.model(torch.float64, watched)
    whole = walk(Runner(model, watched), golden.prompts, prefill(golden.prompts))
    assert whole.mtp_TD is not None
    with torch.inference_mode():
        drafts = project(model.mtp_logits(whole.mtp_TD), LOGITS)
    assert torch.equal(golden.tensors["mtp.logits"], drafts.float())


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on(
    air: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, out = prompts(air), tmp_path / "golden"
    whole = in_folder(air, ids, torch.float64, tmp_path / "whole")

    def stop(done: int, count: int) -> None:
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        in_folder(air, ids, torch.float64, out, on_layer=stop)
    assert not out.exists()
    with pytest.raises(UsageError, match=r"golden.partial holds the beginning of another"):
        in_folder(air, [ids[0]], torch.float64, out)
    computed: list[int] = []
    layer = Maker.layer

    def counted(maker: Maker, i: int) -> None:
        computed.append(i)
        layer(maker, i)

    monkeypatch.setattr(Maker, "layer", counted)
    in_folder(air, ids, torch.float64, out)
    assert computed == [2]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    again = Golden.load(out)
    assert (again.plain, again.noise, again.prompts) == (whole.plain, whole.noise, whole.prompts)
    assert again.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name
    with pytest.raises(UsageError, match="is there already"):
        in_folder(air, ids, torch.float64, out)


def test_a_golden_file_of_something_else_is_refused(air: Subject, tmp_path: Path) -> None:
    golden = in_memory(air, [air.prompt(5)])
    check_subject(golden, air)
    other = Subject("other", small_checkpoint("air-like", tmp_path / "other", seed=1))
    with pytest.raises(UsageError, match="of air-like with weights_sha256"):
        check_subject(golden, other)
    with pytest.raises(UsageError, match="of air-like with weights_format bf16"):
        check_subject(golden, replace(air, kind="fp8"))
    with pytest.raises(UsageError, match="holds no golden file"):
        Golden.load(tmp_path)
    golden = replace(golden, about={**golden.about, "format": 0})
    golden.save(tmp_path)
    with pytest.raises(UsageError, match="of format 0"):
        Golden.load(tmp_path)


def test_projections_keep_errors_and_slopes() -> None:
    g = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(200, 512, generator=g, dtype=torch.float64) for _ in range(2))
    assert set(signs(512, 0).flatten().tolist()) == {-1, 1}
    assert abs(signs(512, 0).mean()) < 0.02
    assert signs(512, 0)[0].tolist() != signs(512, 1)[0].tolist()
    ours = project(1.01 * x + 0.1 * noise, 0) - project(x, 0)
    assert ours.square().mean().sqrt() == pytest.approx(0.1 * 1.005, rel=0.05)
    parts = project(x[:, :100], 0, 0, 512) + project(x[:, 100:], 0, 100, 512)
    torch.testing.assert_close(parts, project(x, 0))
    torch.testing.assert_close(rms(3 * torch.ones(2, 5)), torch.full((2,), 3.0).double())


def test_kl_over_the_top_and_the_tail() -> None:
    g = torch.Generator().manual_seed(0)
    exact = torch.randn(20, 300, generator=g, dtype=torch.float64) * 4
    ours = exact + 0.1 * torch.randn(exact.shape, generator=g, dtype=torch.float64)
    p, q = exact.log_softmax(-1), ours.log_softmax(-1)
    true = (p.exp() * (p - q)).sum(-1)
    top = summarise([(0, exact)], 300)
    found = kl(summarise([(0, ours)], 300, top.ids_TN), top.logprobs_TN, top.tail_T)
    assert (found <= true + 1e-12).all() and found.sum() > 0.95 * true.sum()
    same = summarise([(0, exact)], 300, top.ids_TN)
    assert kl(same, top.logprobs_TN, top.tail_T).max() < 1e-12
    lighter = replace(same, tail_T=same.tail_T / 2)
    assert kl(lighter, top.logprobs_TN, top.tail_T).min() > 0


def test_the_precision_is_chosen_by_the_budget(air: Subject) -> None:
    lengths = [64] * 4
    config = air.config
    double = plan(config, lengths, 2**40)
    single = plan(config, lengths, double.needed - 2**20)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    with pytest.raises(UsageError, match=r"needs .* MiB for 256 tokens in float32"):
        plan(config, lengths, 2**20)


@pytest.mark.parametrize(
    ("text", "count"), [("8GiB", 2**33), ("500MB", 5 * 10**8), ("1.5G", 15 * 10**8), ("9", 9)]
)
def test_amounts_of_memory(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "many", "8 furlongs", "-1G"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="is no amount of memory"):
        parse_bytes(text)


def test_the_size_of_the_file_is_what_is_said(subject: Subject, tmp_path: Path) -> None:
    ids = prompts(subject)
    golden = in_folder(subject, ids, torch.float64, tmp_path / "golden")
    count = sum(PROMPTS) - 2
    tensors = sum(t.nbytes for t in golden.tensors.values())
    assert tensors == count * bytes_per_token(subject.config)
    assert (tmp_path / "golden" / "golden.safetensors").stat().st_size < tensors + 10_000
