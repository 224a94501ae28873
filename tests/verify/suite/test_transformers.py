"""The reference against transformers' own modules of GLM-4.5, op by op, in float64.

The suite's expected results are the reference's: this is what they rest on.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Glm4MoeConfig
from transformers.models.glm4_moe import modeling_glm4_moe

from glm_portable.backends import reference
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.cases import CASES, Case, named
from tests.random_checkpoint import small_config

F64 = torch.float64
theirs: Any = modeling_glm4_moe  # its types say less than its code
CPU = torch.device("cpu")
ROUTERS = [c for c in CASES if c.op == "route" and "NaN" not in c.name]


def config(**changes: Any) -> tuple[Any, ModelConfig]:
    settings = small_config(**changes)
    found: Any = Glm4MoeConfig(**settings)
    found._attn_implementation = "eager"
    return found, ModelConfig.from_dict(settings)


@pytest.mark.parametrize("case", ROUTERS, ids=str)
def test_router(case: Case) -> None:
    """In float32, as theirs is throughout; of equal scores theirs takes any."""
    call = case.call()
    x, gate, bias = (call.tensors[name] for name in ("x", "gate", "bias"))
    module = theirs.Glm4MoeTopkRouter(
        Glm4MoeConfig(**small_config(n_routed_experts=len(gate), hidden_size=x.shape[1],
                                     **call.attributes))
    )  # fmt: skip
    module.weight.data, module.e_score_correction_bias = gate, bias
    _, weights, experts = module(x)
    ours = case.run(reference, torch.float32)
    scores = (x @ gate.T).sigmoid() + bias
    a, b = (scores.gather(1, e.long()).sort(-1).values for e in (ours["experts"], experts))
    assert torch.allclose(a, b, rtol=0, atol=1e-6)
    if not case.exact and case.name != "ties":
        dense = torch.zeros_like(scores), torch.zeros_like(scores)
        dense[0].scatter_(1, ours["experts"].long(), ours["weights"])
        dense[1].scatter_(1, experts, weights)
        assert torch.allclose(*dense, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["without residual", "small values", "rows of every size"])
def test_rms_norm(name: str) -> None:
    case = named("rms_norm", name)
    call = case.call()
    x, w = call.tensors["x"], call.tensors["w"]
    module = theirs.Glm4MoeRMSNorm(len(w), call.attributes["eps"])
    for dtype in (torch.float32, torch.bfloat16):
        module.weight.data = w.to(dtype)
        expected = module(x.to(dtype))
        assert torch.equal(case.run(reference, dtype)["y"], expected)


@pytest.mark.parametrize("name", ["half a head", "after the norm", "a whole head"])
def test_norm_and_rotation(name: str) -> None:
    call = named("rope_store", name).call()
    t = {n: x.to(F64) for n, x in call.tensors.items() if n in ("q", "k", "cos", "sin")}
    q, k = t["q"], t["k"]
    if "q_norm" in call.tensors:
        for part in ("q", "k"):
            module = theirs.Glm4MoeRMSNorm(q.shape[-1], call.attributes["eps"])
            module.weight.data = call.tensors[f"{part}_norm"].to(F64)
            # Theirs takes the mean in float32, hence the tolerance.
            t[part] = module(t[part])
        q, k = t["q"], t["k"]
    heads = (x.transpose(0, 1)[None] for x in (q, k))
    turned = theirs.apply_rotary_pos_emb(*heads, t["cos"][None], t["sin"][None])
    ours = named("rope_store", name).run(reference, F64)
    assert torch.allclose(ours["q"], turned[0][0].transpose(0, 1), rtol=1e-5, atol=1e-6)
    kept = ours["k_pages"].flatten(0, 1)[call.tensors["slots"]]
    assert torch.allclose(kept, turned[1][0].transpose(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor, shared", [(1.0, 1), (2.5, 2)])
def test_mixture_with_its_shared_expert(factor: float, shared: int) -> None:
    their_config, cfg = config(routed_scaling_factor=factor, n_shared_experts=shared)
    torch.manual_seed(0)
    module: Any = theirs.Glm4MoeMoE(their_config)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(11, cfg.hidden_size)
    gate, bias = module.gate.weight.data, module.gate.e_score_correction_bias
    weights, experts = reference.route(x, gate, bias, cfg)
    stacks = [
        Weight(w.data, torch.float32)
        for w in (module.experts.gate_up_proj, module.experts.down_proj)
    ]
    routed = reference.experts(x, stacks[0], stacks[1], weights, experts)
    mlp = module.shared_experts
    both = torch.cat([x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T], -1)
    ours = routed + reference.silu_mul(both) @ mlp.down_proj.weight.T
    with torch.no_grad():
        expected = module(x[None])[0]
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention(qk_norm: bool) -> None:
    their_config, cfg = config(use_qk_norm=qk_norm)
    torch.manual_seed(1)
    module: Any = theirs.Glm4MoeAttention(their_config, 0).double()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(13, cfg.hidden_size, dtype=F64)
    step = Step.build([(0, 13, [3, 0, 2, 1])], 4, CPU)
    cos, sin = theirs.Glm4MoeRotaryEmbedding(their_config)(x, step.positions_T[None])
    causal = torch.full((13, 13), float("-inf"), dtype=F64).triu(1)[None, None]
    with torch.no_grad():
        expected = module(x[None], (cos.to(F64), sin.to(F64)), causal)[0][0]
        ours = _attention(module, x, cfg, step, cos[0].to(F64), sin[0].to(F64))
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


def _attention(
    module: Any, x: Tensor, cfg: ModelConfig, step: Step, cos: Tensor, sin: Tensor
) -> Tensor:
    q, k, v = (
        getattr(module, f"{n}_proj")(x).view(len(x), -1, cfg.head_dim) for n in ("q", "k", "v")
    )
    cache = KVCache.allocate(cfg, 4, 4, F64, CPU)
    qk_norm = cfg.use_qk_norm
    q_norm, k_norm = (getattr(module, f"{n}_norm").weight if qk_norm else None for n in "qk")
    q = reference.rope_store(q, k, v, cos, sin, cache, step, q_norm, k_norm, cfg.rms_norm_eps)
    y = reference.attend(q, cache, step, cfg.head_dim**-0.5)
    out: Tensor = module.o_proj(y.flatten(1))
    return out
