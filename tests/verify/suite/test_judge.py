"""Each measure sees what it is there for: one thing is broken, and that finding comes up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import cpu, reference
from glm_portable.verify.call import Call, Tensors, perform
from glm_portable.verify.cases import Case, named
from glm_portable.verify.suite.judge import Verdict, judge, numbers

BF16 = torch.bfloat16


def judged(case: Case, change: Callable[[dict[str, Tensor]], None], dtype: Any = BF16) -> Verdict:
    """What is said of the reference's own results, changed."""
    call = case.call()
    plain, true = perform(call, reference, dtype), perform(call, reference, torch.float64)
    actual = {name: value.clone() for name, value in plain.items()}
    change(actual)
    return judge(call, actual, plain, true, case.exact)


def only(verdict: Verdict, words: str) -> None:
    assert len(verdict.findings) == 1 and words in verdict.findings[0], verdict.findings


def test_nothing_is_found_in_what_is_right() -> None:
    for case in (LINEAR, ROUTE, named("route", "exact ties"), named("rope_store", "half a head")):
        assert judged(case, lambda results: None).findings == ()


LINEAR = named("linear", "outlier channels")
ROUTE = named("route", "bias around 7")


def noise(results: dict[str, Tensor]) -> None:
    y = results["y"].float()
    step = torch.where(torch.arange(y.numel()) % 2 == 0, 1.0, -1.0).view(y.shape)
    results["y"] = (y * (1 + step * 2**-7)).to(BF16)


def test_error_sees_values_that_are_all_a_little_off() -> None:
    assert any(
        "error" in f and "times plain PyTorch's" in f for f in judged(LINEAR, noise).findings
    )


def test_slope_sees_a_factor() -> None:
    def scaled(results: dict[str, Tensor]) -> None:
        results["y"] = (results["y"].double() * 1.004).float()

    assert any("slope" in f for f in judged(LINEAR, scaled, torch.float32).findings)


def test_tail_sees_one_wrong_number() -> None:
    def one(results: dict[str, Tensor]) -> None:
        top = results["y"].abs().argmax()
        results["y"].view(-1)[top] *= 1 + 2**-5

    found = judged(LINEAR, one).findings
    assert found and all("largest error" in f for f in found)


def test_units_in_the_last_place_see_a_small_row_beside_large_ones() -> None:
    def small_row(results: dict[str, Tensor]) -> None:
        results["y"][0] = results["y"][1] * 2**-5

    only(judged(named("linear", "rows of every size"), small_row), "units in the last place")


def test_nonfinite_values_must_stay_where_they_are() -> None:
    def swallowed(results: dict[str, Tensor]) -> None:
        results["y"] = results["y"].nan_to_num(0.0)

    found = judged(named("linear", "NaN and infinities"), swallowed).findings
    assert "infinite or NaN" in found[0]


def test_a_bias_in_bf16_flips_choices_that_nothing_explains() -> None:
    call = ROUTE.call()
    rounded = Call("route", {**call.tensors, "bias": call.tensors["bias"].bfloat16().float()},
                   call.attributes)  # fmt: skip
    plain, true = perform(call, reference, BF16), perform(call, reference, torch.float64)
    found = judge(call, perform(rounded, reference, BF16), plain, true)
    assert found.measures["flips_unexplained"] > 5
    assert "rounding does not explain" in found.findings[0]


def test_explained_flips_are_counted_and_pass() -> None:
    """Two experts whose scores differ by less than float32's rounding change places."""
    x, gate = torch.ones(1, 64), torch.zeros(4, 64)
    bias = torch.tensor([0.0, 1.0, 1.0 + 2**-23, -1.0])
    settings = dict(num_experts_per_tok=1, n_group=1, topk_group=1, norm_topk_prob=False,
                    routed_scaling_factor=1.0)  # fmt: skip
    call = Call("route", {"x": x.repeat(2, 1), "gate": gate, "bias": bias}, settings)
    true = {"weights": torch.full((2, 1), 0.5).double(), "experts": torch.tensor([[2], [2]])}
    plain: Tensors = {"weights": true["weights"].float(), "experts": true["experts"].int()}
    actual = {"weights": plain["weights"], "experts": torch.tensor([[1], [2]]).int()}
    found = judge(call, actual, plain, true)
    assert found.findings == () and found.measures["flips_explained"] == 1


def test_the_order_of_choice_counts() -> None:
    def reversed_(results: dict[str, Tensor]) -> None:
        for name in results:
            results[name] = results[name].flip(-1)

    only(judged(ROUTE, reversed_), "not in the order of their scores")


def test_of_equal_scores_the_lower_expert_wins() -> None:
    def higher(results: dict[str, Tensor]) -> None:
        results["experts"] = 159 - results["experts"]

    only(judged(named("route", "equal scores"), higher), "rounding does not explain")


def test_weights_are_judged_too() -> None:
    def forgotten(results: dict[str, Tensor]) -> None:
        results["weights"] = results["weights"] / 2.5

    assert any("slope" in f for f in judged(ROUTE, forgotten).findings)


def test_experts_that_do_not_exist() -> None:
    def beyond(results: dict[str, Tensor]) -> None:
        results["experts"][3, 2] = 64

    only(judged(ROUTE, beyond), "not one of 0 to 63")


def test_nan_in_a_token_reaches_its_weights() -> None:
    def cleaned(results: dict[str, Tensor]) -> None:
        results["weights"] = results["weights"].nan_to_num(0.125)

    found = judged(named("route", "one token is NaN"), cleaned).findings
    assert "a token that is NaN has weights that are not" in found


@pytest.mark.parametrize("name", ["k_pages", "v_pages"])
def test_slots_of_other_tokens_stay(name: str) -> None:
    def stray(results: dict[str, Tensor]) -> None:
        free = torch.ones(results[name].shape[:2], dtype=torch.bool).flatten()
        free[CASE.call().tensors["slots"]] = False
        results[name].flatten(0, 1)[int(free.nonzero()[0]), 0, 0] += 1

    CASE = named("rope_store", "half a head")
    assert any("slots of other tokens" in f for f in judged(CASE, stray).findings)


def test_values_are_stored_as_they_are() -> None:
    def rounded(results: dict[str, Tensor]) -> None:
        results["v_pages"] = results["v_pages"] * (1 + 2**-7)

    found = judged(named("rope_store", "half a head"), rounded).findings
    assert any("stored values are not what was given" in f for f in found)


def test_types_and_shapes() -> None:
    def narrow(results: dict[str, Tensor]) -> None:
        results["weights"] = results["weights"].bfloat16()

    only(judged(ROUTE, narrow), "weights is torch.bfloat16 (40, 8), not torch.float32 (40, 8)")


def test_the_measures_are_those_of_the_worst_result() -> None:
    good = torch.ones(2, 8, dtype=torch.float64)
    one = numbers(good.float() * 1.01, good.float(), good)
    assert one.measures["error"] == pytest.approx(0.01, rel=1e-3)
    assert one.measures["allowed"] == pytest.approx(1e-6)
    case = named("rms_norm", "with residual")

    def worse(results: dict[str, Tensor]) -> None:
        results["sum"] = results["sum"] * 1.25

    assert judged(case, worse).measures["error"] == pytest.approx(0.25, rel=0.01)


def test_the_host_backend_passes_a_case_of_each_op() -> None:
    for op, name in (("experts", "one token"), ("attend", "decode of one")):
        assert named(op, name).findings(cpu, BF16) == ()
