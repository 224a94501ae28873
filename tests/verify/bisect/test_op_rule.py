"""The rule for a recorded call: sequence by sequence, and where numbers are rounded to codes."""

import torch

from glm_portable.backends import reference
from glm_portable.verify.bisect.op_rule import Yardsticks, judge_call
from glm_portable.verify.call import Call, perform
from glm_portable.verify.cases.data import FP8, normal, quantised
from glm_portable.verify.metrics import distance

BF16 = torch.bfloat16
GATE = Call("silu_mul", {"x": normal(40, 64)})


def test_a_fault_in_one_sequence_is_seen_and_named() -> None:
    sticks = Yardsticks.of(GATE, BF16)
    y = sticks.plain["y"].clone()
    assert not judge_call(GATE, {"y": y}, sticks, (38, 40)).findings
    y[38:] *= 1.01
    found = judge_call(GATE, {"y": y}, sticks, (38, 40))
    assert found.findings and all(text.startswith("sequence 2, y: ") for text in found.findings)
    assert found.measures["error"] > found.measures["allowed"]
    assert not judge_call(GATE, {"y": y}, sticks, (40,)).findings
    y[38:] *= 3
    assert "of 2 sequences only 2" in judge_call(GATE, {"y": y}, sticks, (38, 40)).findings


def test_codes_within_make_the_yardstick_longer() -> None:
    gate_up, down = (
        quantised(*shape, dtype=BF16, kind=FP8, dynamic=True)
        for shape in ((8, 48, 64), (8, 64, 24))
    )
    assert gate_up.scale is not None and down.scale is not None
    tensors = {
        "gate_up": gate_up.data, "gate_up_scale": gate_up.scale,
        "down": down.data, "down_scale": down.scale,
        "weights": torch.tensor([[0.6, 0.4], [0.3, 0.7]]),
        "experts": torch.tensor([[0, 3], [1, 2]], dtype=torch.int32),
    }  # fmt: skip
    attributes = {"block": None, "dynamic_activations": True}
    longer = 0
    for seed in range(6):
        call = Call("experts", {**tensors, "x": normal(2, 64, seed=seed)}, attributes)
        sticks = Yardsticks.of(call, BF16)
        plain, exact = perform(call, reference, BF16)["y"], sticks.exact["y"]
        errors = distance(sticks.plain["y"], exact).error, distance(plain, exact).error
        assert errors[0] >= errors[1]
        longer += errors[0] > errors[1]
        assert judge_call(call, {"y": plain * 1.5}, sticks, (1, 2)).findings
    assert longer
