"""Calls kept as data give what the op itself gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.call import Call, perform, routing_attributes, step_tensors
from glm_portable.verify.cases.data import normal, quantised, weight
from tests.random_checkpoint import small_config

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
STEP = Step.build([(4, 2, [3, 1]), (0, 4, [0])], 4, torch.device("cpu"))


def same(call: Call, expected: dict[str, Tensor], dtype: torch.dtype = BF16) -> None:
    actual = perform(call, reference, dtype)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("dtype", [BF16, torch.float64], ids=str)
def test_linear(dtype: torch.dtype) -> None:
    x, w, bias = normal(3, 64), weight(24, 64, dtype=dtype), normal(24, seed=2)
    y = reference.linear(x.to(dtype), w, bias.to(dtype))
    same(Call("linear", {"x": x, "w": w.data, "bias": bias}), {"y": y}, dtype)


@pytest.mark.parametrize("block", [None, (16, 16)], ids=str)
def test_quantised_linear(block: tuple[int, int] | None) -> None:
    w = quantised(24, 64, dtype=BF16, kind=FP8, block=block, dynamic=block is None)
    x = normal(3, 64)
    assert w.scale is not None
    call = Call(
        "linear",
        {"x": x, "w": w.data, "w_scale": w.scale},
        {"block": block and list(block), "dynamic_activations": block is None},
    )
    same(call, {"y": reference.linear(x.bfloat16(), w)})


@pytest.mark.parametrize("residual", [None, normal(3, 64, seed=2)], ids=["alone", "residual"])
def test_rms_norm(residual: Tensor | None) -> None:
    x, w = normal(3, 64), normal(64, seed=1)
    extra = {} if residual is None else {"residual": residual}
    narrow = None if residual is None else residual.bfloat16()
    y, total = reference.rms_norm(x.bfloat16(), w.bfloat16(), 1e-2, narrow)
    same(Call("rms_norm", {"x": x, "w": w, **extra}, {"eps": 1e-2}), {"y": y, "sum": total})


def test_silu_mul() -> None:
    x = normal(3, 64)
    same(Call("silu_mul", {"x": x}), {"y": reference.silu_mul(x.bfloat16())})


def attention(kind: torch.dtype, **attributes: float) -> tuple[Call, Call]:
    """A `rope_store` and the `attend` on its pages."""
    tensors = {name: normal(6, n, 32, seed=n) for name, n in (("q", 4), ("k", 2), ("v", 2))}
    tensors |= {name: normal(6, 16, seed=s) for s, name in enumerate(("cos", "sin"))}
    pages = {f"{n}_pages": normal(4, 4, 2, 32, seed=3).to(kind) for n in "kv"}
    norms = {f"{n}_norm": normal(32, seed=4) for n in "qk"}
    steps = step_tensors(STEP)
    stored = Call("rope_store", {**tensors, **pages, **norms, **steps}, {"eps": 0.1, **attributes})
    return stored, Call(
        "attend", {"q": tensors["q"], **pages, **steps}, {"scale": 0.3, **attributes}
    )


def cache(call: Call, kind: torch.dtype) -> KVCache:
    scales = (call.attributes.get(f"{n}_scale", 1.0) for n in "kv")
    return KVCache(*(call.tensors[f"{n}_pages"].to(kind, copy=True) for n in "kv"), *scales)  # type: ignore[arg-type]  # tensors, then floats


@pytest.mark.parametrize(
    "kind, scales",
    [(BF16, {}), (FP8, {"k_scale": 0.5, "v_scale": 2.0})],
    ids=["bf16 pages", "fp8 pages"],
)
def test_attention(kind: torch.dtype, scales: dict[str, float]) -> None:
    stored, attended = attention(kind, **scales)
    before = {name: t.clone() for name, t in stored.tensors.items()}
    pages, t = cache(stored, kind), {n: x.bfloat16() for n, x in stored.tensors.items()}
    q = reference.rope_store(
        t["q"], t["k"], t["v"], t["cos"], t["sin"], pages, STEP, t["q_norm"], t["k_norm"], 0.1
    )
    same(stored, {"q": q, "k_pages": pages.k_PSGC, "v_pages": pages.v_PSGC})
    assert all(torch.equal(x, stored.tensors[name]) for name, x in before.items())
    same(attended, {"y": reference.attend(t["q"], cache(attended, kind), STEP, 0.3)})


def test_route() -> None:
    cfg = ModelConfig.from_dict(small_config(n_routed_experts=8, num_experts_per_tok=2))
    x, gate, bias = normal(3, 64), normal(8, 64, seed=1), 7 + normal(8, seed=2) / 100
    weights, experts = reference.route(x.bfloat16(), gate, bias, cfg)
    call = Call("route", {"x": x, "gate": gate, "bias": bias}, routing_attributes(cfg))
    same(call, {"weights": weights, "experts": experts})


@pytest.mark.parametrize("kind", [None, FP8], ids=str)
def test_experts(kind: torch.dtype | None) -> None:
    def stack(*shape: int) -> Weight:
        if kind is None:
            return weight(*shape, dtype=BF16)
        return quantised(*shape, dtype=BF16, kind=kind, dynamic=True)

    gate_up, down = stack(4, 48, 64), stack(4, 64, 24)
    x, weights = normal(3, 64), torch.rand(3, 2)
    experts = torch.tensor([[0, 3], [1, 2], [-1, 9]], dtype=torch.int32)
    tensors = {"x": x, "weights": weights, "experts": experts}
    for name, w in (("gate_up", gate_up), ("down", down)):
        tensors[name] = w.data
        if w.scale is not None:
            tensors[f"{name}_scale"] = w.scale
    y = reference.experts(x.bfloat16(), gate_up, down, weights, experts)
    same(Call("experts", tensors, {"dynamic_activations": kind is not None}), {"y": y})


def test_unknown_op() -> None:
    with pytest.raises(UsageError, match="'conv' is not one of linear, "):
        perform(Call("conv", {}), reference, BF16)


def test_attributes_of_a_step_are_its_own() -> None:
    tensors: dict[str, Any] = step_tensors(STEP)
    assert tensors["kv_lengths"].tolist() == [6, 4]
    assert tensors["query_ends"].tolist() == [2, 6]
