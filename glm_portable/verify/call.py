"""One call of an op as data: named tensors and plain attributes, so that it can be kept and judged.

The cases of the suite, the golden files and the reproducers are all made of these. Names of tensors
are the parameters' of `ops.Ops` without their shape letters; a quantised weight brings
`<name>_scale`, and a step its five tensors.

    op          tensors                                              attributes
    linear      x w [w_scale] [bias]                                 [block] [dynamic_activations]
    rms_norm    x w [residual]                                       eps
    silu_mul    x
    rope_store  q k v cos sin k_pages v_pages [q_norm k_norm] STEP   eps k_scale v_scale
    attend      q k_pages v_pages STEP                               scale k_scale v_scale
    route       x gate bias                                          ROUTING
    experts     x gate_up [gate_up_scale] down [down_scale]          [block] [dynamic_activations]
                weights experts

Results: y for linear, silu_mul, attend and experts; y and sum for rms_norm; q, k_pages and v_pages
for rope_store; weights and experts for route.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Ops, Step, Weight

Tensors = Mapping[str, Tensor]

STEP = ("positions", "slots", "query_ends", "kv_lengths", "block_table")
ROUTING = (
    "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor",
)  # fmt: skip
KV_SCALES = ("k_scale", "v_scale")
WIDE = {("route", "gate"), ("route", "bias"), ("experts", "weights")}
"""Float32 whatever the model's type; in float64 they are float64."""


@dataclass(frozen=True)
class Call:
    """tensors: on the host, floating ones in a type that holds the case's numbers exactly."""

    op: str
    tensors: Tensors
    attributes: Mapping[str, Any] = field(default_factory=dict)


def bind(call: Call, ops: Ops, dtype: torch.dtype) -> Callable[[], dict[str, Tensor]]:
    """The call on a backend, its inputs in place and its weights packed; may be run repeatedly.

    Activations and plain weights are taken in `dtype`, codes (FP8, INT8) and their scales as they
    are. Results stay in the backend's memory. Raises UsageError for an op that `Ops` has not, and
    whatever the backend refuses.
    """
    if call.op not in _BINDERS:
        raise UsageError(f"op {call.op!r} is not one of {', '.join(_BINDERS)}.")
    placed = {name: _placed(call, name, ops, dtype) for name in call.tensors}
    return _BINDERS[call.op](Call(call.op, placed, call.attributes), ops, dtype)


def perform(call: Call, ops: Ops, dtype: torch.dtype) -> dict[str, Tensor]:
    """The call's results on the host."""
    return {name: value.cpu() for name, value in bind(call, ops, dtype)().items()}


def _placed(call: Call, name: str, ops: Ops, dtype: torch.dtype) -> Tensor:
    tensor = call.tensors[name]
    if not tensor.is_floating_point() or tensor.itemsize == 1 or name.endswith("_scale"):
        kind = tensor.dtype
    elif (call.op, name) in WIDE:
        kind = torch.promote_types(dtype, torch.float32)
    else:
        kind = dtype
    # Never the call's own memory: rope_store writes into its pages.
    return tensor.to(ops.device, kind, copy=True)


Bound = Callable[[], dict[str, Tensor]]


def _linear(call: Call, ops: Ops, dtype: torch.dtype) -> Bound:
    t, w = call.tensors, ops.pack(_weight(call, "w", dtype))
    return lambda: {"y": ops.linear(t["x"], w, t.get("bias"))}


def _rms_norm(call: Call, ops: Ops, dtype: torch.dtype) -> Bound:
    t, eps = call.tensors, call.attributes["eps"]

    def run() -> dict[str, Tensor]:
        y, total = ops.rms_norm(t["x"], t["w"], eps, t.get("residual"))
        return {"y": y, "sum": total}

    return run


def _silu_mul(call: Call, ops: Ops, dtype: torch.dtype) -> Bound:
    return lambda: {"y": ops.silu_mul(call.tensors["x"])}


def _rope_store(call: Call, ops: Ops, dtype: torch.dtype) -> Bound:
    t, cache, step = call.tensors, _cache(call), _step(call)
    q_norm, k_norm, eps = t.get("q_norm"), t.get("k_norm"), call.attributes.get("eps", 0.0)

    def run() -> dict[str, Tensor]:
        q = ops.rope_store(
            t["q"], t["k"], t["v"], t["cos"], t["sin"], cache, step, q_norm, k_norm, eps
        )
        return {"q": q, "k_pages": cache.k_PSGC, "v_pages": cache.v_PSGC}

    return run


def _attend(call: Call, ops: Ops, dtype: torch.dtype) -> Bound:
    q, cache, step = call.tensors["q"], _cache(call), _step(call)
    return lambda: {"y": ops.attend(q, cache, step, call.attributes["scale"])}


def _route(call: Call, ops: Ops, dtype: torch.dtype) -> Bound:
    t = call.tensors
    cfg = SimpleNamespace(**{name: call.attributes[name] for name in ROUTING})
    cfg.n_routed_experts = len(t["bias"])

    def run() -> dict[str, Tensor]:
        weights, experts = ops.route(t["x"], t["gate"], t["bias"], cast(ModelConfig, cfg))
        return {"weights": weights, "experts": experts}

    return run


def _experts(call: Call, ops: Ops, dtype: torch.dtype) -> Bound:
    t = call.tensors
    gate_up, down = (ops.pack(_weight(call, name, dtype)) for name in ("gate_up", "down"))
    return lambda: {"y": ops.experts(t["x"], gate_up, down, t["weights"], t["experts"])}


_BINDERS: dict[str, Callable[[Call, Ops, torch.dtype], Bound]] = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "silu_mul": _silu_mul,
    "rope_store": _rope_store,
    "attend": _attend,
    "route": _route,
    "experts": _experts,
}
OPS = tuple(_BINDERS)


def _weight(call: Call, name: str, dtype: torch.dtype) -> Weight:
    block = call.attributes.get("block")
    return Weight(
        call.tensors[name],
        dtype,
        call.tensors.get(f"{name}_scale"),
        tuple(block) if block else None,
        call.attributes.get("dynamic_activations", False),
    )


def _cache(call: Call) -> KVCache:
    t, k_scale, v_scale = call.tensors, *(call.attributes.get(n, 1.0) for n in KV_SCALES)
    return KVCache(t["k_pages"], t["v_pages"], k_scale, v_scale)


def _step(call: Call) -> Step:
    """The host's copies of ends and lengths are the tensors' own values."""
    positions, slots, ends, lengths, table = (call.tensors[name] for name in STEP)
    return Step(
        positions, slots, ends, lengths, table, tuple(ends.tolist()), tuple(lengths.tolist())
    )


def step_tensors(step: Step) -> dict[str, Tensor]:
    """A step's part of a call's tensors."""
    rows = (
        step.positions_T, step.slots_T, step.query_ends_B, step.kv_lengths_B, step.block_table_BP,
    )  # fmt: skip
    return dict(zip(STEP, rows, strict=True))


def routing_attributes(cfg: ModelConfig) -> dict[str, Any]:
    """A config's part of a `route` call's attributes."""
    return {name: getattr(cfg, name) for name in ROUTING}
