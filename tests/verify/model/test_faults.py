"""Each kind of difference is found, and named where it is; clean backends raise no alarm."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.errors import UsageError
from glm_portable.model import MTP, Model
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.generated import small_checkpoint
from glm_portable.verify.golden.build import in_memory
from glm_portable.verify.golden.record import Golden
from glm_portable.verify.model.checks import LENGTHS, Options, checks
from glm_portable.verify.results import Check, Status
from glm_portable.verify.subject import Subject
from tests.verify.model.faulty import REFERENCE, Faulty

ROUTED = {"layer 1", "layer 2", "layer 3 (MTP)"}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject("air-like", small_checkpoint("air-like", tmp_path_factory.mktemp("air")))


def reference_of(subject: Subject) -> Golden:
    return in_memory(subject, [subject.prompt(n, s) for s, n in enumerate(LENGTHS)])


@pytest.fixture(scope="module")
def golden(subject: Subject) -> Golden:
    return reference_of(subject)


def failing(found: Sequence[Check]) -> list[str]:
    """Subjects of the checks that fail, in order."""
    for check in found:
        assert all(finding.startswith(f"{check.subject}: ") for finding in check.findings)
    return [check.subject for check in found if check.status is Status.FAIL]


def run(machine: Any, subject: Subject, golden: Golden, *parts: str) -> list[Check]:
    found = list(checks(machine, subject, Options(parts=parts, golden=golden)))
    assert found[-1].subject == "kernels"
    return found[:-1]


def test_a_clean_backend_passes_and_says_what_it_measured(subject: Subject, golden: Golden) -> None:
    found = run(REFERENCE, subject, golden, "stream", "free", "drafts", "paths")
    assert failing(found) == []
    by = {(check.subject, check.name): check for check in found}
    assert {s for s, _ in by} == {
        "layer 0", "final norm", "head", "MTP head", "whole model",
        "decode", "chunked prefill", "prefix-cached", "preempted",
    } | ROUTED  # fmt: skip
    head = by["head", "logits, teacher-forced"]
    assert len(head.series["kl"]) == sum(LENGTHS) - 2
    # The reference in BF16 is the yardstick itself.
    assert head.measures["kl_mean"] == pytest.approx(head.measures["plain_kl_mean"], rel=1e-3)
    layer = by["layer 1", "stream, teacher-forced"].measures
    assert layer["error"] == pytest.approx(layer["allowed"] / 2, rel=0.01)
    assert by["preempted", "equals prefill"].measures["bit_equal"] > 0


@pytest.mark.parametrize("name", ["air-like", "glm-4.5-like"])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_false_alarm(name: str, seed: int, tmp_path: Path) -> None:
    subject = Subject(name, small_checkpoint(name, tmp_path, seed), seed=seed)
    found = run(ops.load("cpu"), subject, reference_of(subject), "stream", "free", "drafts")
    assert failing(found) == []


def test_no_alarm_where_luck_re_routes_tokens(tmp_path: Path) -> None:
    """Two tokens of 19 go to other experts here and none in plain PyTorch, or the other way."""
    subject = Subject("glm-4.5-like", small_checkpoint("glm-4.5-like", tmp_path, 1), seed=1)
    found = list(checks(ops.load("cpu"), subject, Options(parts=("layers",))))
    assert failing(found) == []


def test_a_wrong_scale_is_named_with_its_layer(subject: Subject, golden: Golden) -> None:
    """`pack` is called for qkv, out and two of an MLP or four of a mixture: 5 is layer 1's out."""

    def pack(call: int, w: Weight) -> Weight:
        return replace(w, data=w.data * 1.125) if call == 5 else w

    found = run(Faulty("pack", pack), subject, golden, "stream")
    assert failing(found)[0] == "layer 1"
    first = next(check for check in found if check.status is Status.FAIL)
    assert first.name == "stream, teacher-forced"


def test_a_wrong_value_projection_is_named_with_the_cache(subject: Subject, golden: Golden) -> None:
    def rope_store(call: int, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        return REFERENCE.rope_store(q, k, v * 1.05 if call % 4 == 2 else v, *rest)

    found = run(Faulty("rope_store", rope_store), subject, golden, "stream")
    first = next(check for check in found if check.status is Status.FAIL)
    assert (first.subject, first.name) == ("layer 2", "KV pages")
    assert (
        "cached values: slope" in first.findings[0] or "cached values: error" in first.findings[0]
    )


def test_a_page_written_that_is_nobodys(subject: Subject, golden: Golden) -> None:
    def rope_store(call: int, *arguments: Any) -> Any:
        result = REFERENCE.rope_store(*arguments)
        arguments[5].k_PSGC[0, 3] = 1
        return result

    found = run(Faulty("rope_store", rope_store), subject, golden, "stream")
    assert set(failing(found)) == {"layer 0"} | ROUTED
    assert "1 pages that no sequence owns were written to" in found[0].findings[0]


def hidden_slot(cache: KVCache, step: Step, b: int, position: int) -> KVCache:
    """The cache as it were if one token of a sequence had never been stored."""
    size = cache.k_PSGC.shape[1]
    page = int(step.block_table_BP[b, position // size])
    k, v = cache.k_PSGC.clone(), cache.v_PSGC.clone()
    k[page, position % size] = v[page, position % size] = 0
    return replace(cache, k_PSGC=k, v_PSGC=v)


def test_a_stale_page_in_decode_alone(subject: Subject, golden: Golden) -> None:
    def attend(call: int, q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        if len(q) == len(step.kv_lengths):  # one token a sequence
            cache = hidden_slot(cache, step, 0, max(0, step.kv_lengths[0] - 5))
        return REFERENCE.attend(q, cache, step, scale)

    found = run(Faulty("attend", attend), subject, golden, "stream", "paths")
    assert failing(found) == ["decode", "preempted"]


def test_a_chunk_boundary_off_by_one(subject: Subject, golden: Golden) -> None:
    """A chunk that does not see the last token before it."""

    def attend(call: int, q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        begin = step.kv_lengths[0] - step.query_ends[0]
        if begin and step.query_ends[0] > 1:
            cache = hidden_slot(cache, step, 0, begin - 1)
        return REFERENCE.attend(q, cache, step, scale)

    found = run(Faulty("attend", attend), subject, golden, "stream", "paths")
    assert {"chunked prefill", "prefix-cached"} <= set(failing(found))
    assert "decode" not in failing(found) and failing(found)[0] == "chunked prefill"


class Unshifted(MTP):
    """Gets the tokens themselves instead of those that follow."""

    def __call__(self, next_ids_T: Tensor, *rest: Any) -> Tensor:
        return super().__call__(next_ids_T.roll(1), *rest)


def test_an_mtp_layer_whose_input_is_not_shifted(subject: Subject, golden: Golden) -> None:
    def build(*arguments: Any) -> Model:
        model = Model(*arguments)
        assert model.mtp is not None
        model.mtp.__class__ = Unshifted
        return model

    found = run(REFERENCE, replace(subject, build=build), golden, "stream", "drafts")
    assert set(failing(found)) == {"layer 3 (MTP)", "MTP head"}
    assert failing(found)[0] == "layer 3 (MTP)"
    drafts = next(check for check in found if check.subject == "MTP head")
    assert drafts.measures["drafts_unexplained"] > 0


def test_a_router_bias_in_bf16_flips_experts_unexplained(subject: Subject, golden: Golden) -> None:
    def route(call: int, x: Tensor, gate: Tensor, bias: Tensor, cfg: Any) -> Any:
        return REFERENCE.route(x, gate, bias.bfloat16().float(), cfg)

    found = run(Faulty("route", route), subject, golden, "stream")
    # The right experts are replayed, so nothing else is off.
    assert set(failing(found)) == ROUTED
    for check in found:
        assert all("other experts unexplained" in finding for finding in check.findings)
        assert (check.measures.get("flips_unexplained", 0) > 0) == bool(check.findings)


def test_one_wrong_choice_of_one_router(subject: Subject, golden: Golden) -> None:
    def route(call: int, x: Tensor, gate: Tensor, bias: Tensor, cfg: Any) -> Any:
        weights, experts = REFERENCE.route(x, gate, bias, cfg)
        if call == 1:  # of layer 2
            scores = (x[7].float() @ gate.T).sigmoid() + bias
            experts[7, 0] = scores.argmin()
        return weights, experts

    found = run(Faulty("route", route), subject, golden, "stream")
    assert failing(found) == ["layer 2"]
    assert "layer 2: 1 of 52 tokens go to other experts unexplained" in found[5].findings


def of_head(change: Any) -> Faulty:
    def linear(call: int, x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
        y = REFERENCE.linear(x, w, bias)
        return change(y) if w.data.shape == (1536, 256) and bias is None else y  # qkv is as wide

    return Faulty("linear", linear)


def test_logits_of_unlikely_tokens_that_are_off(subject: Subject, golden: Golden) -> None:
    def change(logits: Tensor) -> Tensor:
        """The last tile of the vocabulary, where no logit is large."""
        low = logits.clone()
        low[:, 1408:] = torch.where(low[:, 1408:] < 2, low[:, 1408:] * 1.25, low[:, 1408:])
        return low

    found = run(of_head(change), subject, golden, "stream", "drafts")
    assert set(failing(found)) == {"head", "MTP head"}


def test_logits_of_one_token_that_are_off(subject: Subject, golden: Golden) -> None:
    def change(logits: Tensor) -> Tensor:
        if len(logits) <= 9:
            return logits
        wrong = logits.clone()
        wrong[9] *= 0.8
        return wrong

    found = run(of_head(change), subject, golden, "stream")
    assert failing(found) == ["head"]
    head = next(check for check in found if check.subject == "head")
    assert any("largest KL" in finding for finding in head.findings)
    assert head.measures["kl_max"] == max(head.series["kl"]) == head.series["kl"][9]


def test_likeliest_tokens_that_no_margin_explains(subject: Subject, golden: Golden) -> None:
    def change(logits: Tensor) -> Tensor:
        """The second takes the first's place, however far it was behind."""
        best = logits.topk(2, dim=-1)
        wrong = logits.clone()
        return wrong.scatter_(1, best.indices, best.values.flip(-1))

    found = run(of_head(change), subject, golden, "stream", "free")
    assert failing(found) == ["head", "whole model"]
    for check in found:
        if check.findings:
            assert any("likeliest tokens are others" in finding for finding in check.findings)
            assert check.measures["same_top"] < 0.1


class Device:
    """A device's backend that starts no kernel: it left all to the reference."""

    name, device, page_size = "silent", torch.device("cpu"), 16

    def launch(self, kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(REFERENCE, name)


def kernel() -> None: ...


class Half(Device):
    """Starts one for attention, and none for the experts."""

    def attend(self, *arguments: Any) -> Tensor:
        self.launch(kernel, (1,), options={})
        return REFERENCE.attend(*arguments)


def kernels(machine: Any, subject: Subject, golden: Golden) -> Check:
    return list(checks(machine, subject, Options(parts=("stream",), golden=golden)))[-1]


def test_a_silent_fallback_is_a_failure(subject: Subject, golden: Golden) -> None:
    found = kernels(Device(), subject, golden)
    assert found.status is Status.FAIL and "no kernel of the backend was seen" in found.findings[0]
    found = kernels(Half(), subject, golden)
    assert found.findings == ("3 calls of experts started no kernel",)
    assert found.kernels == {"kernel": 4}
    assert kernels(REFERENCE, subject, golden).status is Status.PASS


def test_a_refused_format_is_unsupported(subject: Subject) -> None:
    def pack(call: int, w: Weight) -> Weight:
        raise UsageError("this chip has no FP8.")

    found = list(checks(Faulty("pack", pack), subject, Options()))
    assert [check.status for check in found] == [Status.UNSUPPORTED]
    assert found[0].note == "this chip has no FP8."
