"""Each documented limit of an operator, violated: refused by operator, argument, value and rule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends.ascend import AscendOps
from glm_portable.virtual import npu as virtual_npu
from glm_portable.virtual.npu.refusal import Refusal

BF16, F16, F32, I8, I32, I64 = (
    torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.int32, torch.int64,
)  # fmt: skip
FP8 = torch.float8_e4m3fn


def z(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def mask(polarity: bool = True) -> Tensor:
    above = torch.ones(2048, 2048, dtype=torch.bool).triu_(1)
    return above if polarity else ~above


def gating(npu: Any, x: Tensor | None = None, k: int = 8, **changes: Any) -> Any:
    rest = {"bias": z(160, dtype=F32), "norm_type": 1, "renorm": 0} | changes
    return npu.npu_moe_gating_top_k(z(4, 160, dtype=F32) if x is None else x, k, **rest)


def init(npu: Any, x: Tensor | None = None, ids: Tensor | None = None, **changes: Any) -> Any:
    rest = {
        "active_num": 8, "expert_num": 8, "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True, "active_expert_range": [0, 8], "quant_mode": -1,
    } | changes  # fmt: skip
    x = z(4, 64) if x is None else x
    return npu.npu_moe_init_routing_v2(x, z(4, 2, dtype=I32) if ids is None else ids, **rest)


def unpermute(npu: Any, index: list[int], **changes: Any) -> Any:
    rest = {"probs": z(2, 2, dtype=F32)} | changes
    return npu.npu_moe_token_unpermute(z(4, 64), torch.tensor(index, dtype=I32), **rest)


def grouped(
    npu: Any, x: Tensor | None = None, w: Tensor | None = None, groups: Any = (3, 5), **changes: Any
) -> Any:
    listed = torch.tensor(groups) if isinstance(groups, tuple) else groups
    rest = {"group_list": listed, "split_item": 2, "group_type": 0, "group_list_type": 1} | changes
    x, w = z(8, 64) if x is None else x, z(2, 64, 32) if w is None else w
    return npu.npu_grouped_matmul([x], [w], **rest)


def grouped8(npu: Any, **changes: Any) -> Any:
    rest = {"scale": [z(2, 32)], "per_token_scale": [z(8, dtype=F32)], "output_dtype": BF16}
    return grouped(npu, z(8, 64, dtype=I8), z(2, 64, 32, dtype=I8), **(rest | changes))


def quant(npu: Any, x1: Tensor | None = None, x2: Tensor | None = None, **changes: Any) -> Any:
    x1, x2 = z(4, 64, dtype=I8) if x1 is None else x1, z(64, 32, dtype=I8) if x2 is None else x2
    scale = changes.pop("scale", z(32, dtype=F32))
    rest = {"pertoken_scale": z(4, dtype=F32), "output_dtype": BF16} | changes
    return npu.npu_quant_matmul(x1, x2, scale, **rest)


def gate(npu: Any, width: int = 256, **changes: Any) -> Any:
    rest = {
        "weight_scale": z(2, width, dtype=F32), "activation_scale": z(8, 1, dtype=F32),
        "group_index": torch.tensor([3, 5]), "activate_left": True, "quant_mode": 1,
    } | changes  # fmt: skip
    return npu.npu_dequant_swiglu_quant(z(8, width, dtype=I32), **rest)


def scatter(
    npu: Any, slots: tuple[int, ...] = (3, 17), kind: torch.dtype = I32, **changes: Any
) -> Any:
    rest: dict[str, Any] = {"key": z(2, 2, 128), "value": z(2, 2, 128), "cache_mode": "Norm"}
    rest |= changes
    k, v, cache = rest.pop("key"), rest.pop("value"), z(4, 16, 2, 128)
    mapping = torch.tensor(slots, dtype=kind)
    return npu.npu_scatter_pa_kv_cache(k, v, cache, cache.clone(), mapping, **rest)


def attend(npu: Any, **changes: Any) -> Any:
    rest = {
        "q": z(7, 4, 128), "k": z(6, 16, 256), "v": z(6, 16, 256), "atten_mask": mask(),
        "block_table": torch.tensor([[1, 2], [3, 4]], dtype=I32), "block_size": 16,
        "actual_seq_lengths": [3, 7], "actual_seq_lengths_kv": [20, 9], "num_heads": 4,
        "num_key_value_heads": 2, "input_layout": "TND", "sparse_mode": 3, "scale": 0.09,
    } | changes  # fmt: skip
    q, k, v = rest.pop("q"), rest.pop("k"), rest.pop("v")
    return npu.npu_fused_infer_attention_score(q, k, v, **rest)


def mrope(npu: Any, **changes: Any) -> Any:
    rest = {"q": z(3, 256), "k": z(3, 128), "cache": z(9, 64), "at": torch.arange(3), "size": 128}
    rest |= {"mrope_section": [0, 0, 0], "rotary_mode": "half"} | changes
    at, q, k, cache, size = (rest.pop(n) for n in ("at", "q", "k", "cache", "size"))
    return npu.npu_mrope(at, q, k, cache, size, **rest)


def turned(*shape: int) -> Tensor:
    return z(*shape[:-2], shape[-1], shape[-2]).mT


VALID: list[Callable[..., Any]] = [
    gating,
    init,
    grouped,
    grouped8,
    quant,
    gate,
    scatter,
    attend,
    mrope,
]

VIOLATIONS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("norm x", lambda n: n.npu_rms_norm(z(2, 8, dtype=I8), z(8), 1e-5), "x's dtype is torch.int8"),
    ("norm gamma", lambda n: n.npu_rms_norm(z(2, 8), z(8, dtype=F16), 1e-5), "gamma's dtype"),
    ("norm width", lambda n: n.npu_rms_norm(z(2, 8), z(4), 1e-5), r"gamma's shape is \(4,\)"),
    ("add dtype", lambda n: n.npu_add_rms_norm(z(2, 8), z(2, 8, dtype=F32), z(8)), "x2's dtype"),
    ("add shape", lambda n: n.npu_add_rms_norm(z(2, 8), z(1, 8), z(8)), "x2's shape"),
    ("swiglu odd", lambda n: n.npu_swiglu(z(2, 7)), "dimension -1 is 7, but it must be even"),
    ("swiglu int", lambda n: n.npu_swiglu(z(2, 8, dtype=I32)), "input's dtype is torch.int32"),
    ("gating bias", lambda n: gating(n, bias=z(160)), "bias's dtype is torch.bfloat16, but x's is"),
    ("gating bias shape", lambda n: gating(n, bias=z(8, dtype=F32)), "bias's shape"),
    ("gating renorm", lambda n: gating(n, renorm=1), "renorm is 1, but only 0 is supported"),
    ("gating norm", lambda n: gating(n, norm_type=2), "norm_type is 2"),
    (
        "gating E",
        lambda n: gating(n, z(1, 4096, dtype=F32), bias=None),
        "experts is 4096, but 2048",
    ),
    ("gating groups", lambda n: gating(n, group_count=80), "a group of 2 experts is too small"),
    ("gating divide", lambda n: gating(n, group_count=3), "group_count is 3, but it must divide"),
    ("gating k_group", lambda n: gating(n, group_count=4, k_group=5), "k_group is 5"),
    ("gating k", lambda n: gating(n, k=161), "k is 161"),
    ("gating int", lambda n: gating(n, z(4, 160, dtype=I32), bias=None), "x's dtype"),
    ("init ids", lambda n: init(n, ids=z(4, 2, dtype=I64)), "expert_idx's dtype is torch.int64"),
    ("init id", lambda n: init(n, ids=z(4, 2, dtype=I32) + 8), "expert_idx is .*there are 8"),
    ("init type", lambda n: init(n, expert_tokens_num_type=0), "expert_tokens_num_type is 0"),
    ("init flag", lambda n: init(n, expert_tokens_num_flag=False), "expert_tokens_num_flag is Fa"),
    ("init quant", lambda n: init(n, quant_mode=0), "quant_mode is 0, but it must be -1 or 1"),
    ("init pad", lambda n: init(n, drop_pad_mode=1, expert_capacity=2), "drop_pad_mode is 1"),
    (
        "init range",
        lambda n: init(n, active_expert_range=[4, 9]),
        r"active_expert_range is \[4, 9\]",
    ),
    ("init active", lambda n: init(n, active_num=5), "active_num is 5, but there are 8 choices"),
    ("init strides", lambda n: init(n, turned(4, 64)), "x's strides .* contiguous"),
    ("unpermute -1", lambda n: unpermute(n, [0, -1, 2, 3]), "must be one of the 4 rows"),
    ("unpermute twice", lambda n: unpermute(n, [0, 1, 1, 3]), "no index may come twice"),
    (
        "unpermute probs",
        lambda n: unpermute(n, [0, 1, 2, 3], probs=z(2, 2, dtype=I32)),
        "probs's d",
    ),
    (
        "unpermute pad",
        lambda n: unpermute(n, [0, 1, 2, 3], padded_mode=True),
        "padded_mode is True",
    ),
    ("gmm K", lambda n: grouped(n, z(8, 32)), "weight's rows is 64, but x has 32 columns"),
    (
        "gmm dtype",
        lambda n: grouped(n, w=z(2, 64, 32, dtype=F16)),
        "weight's dtype is torch.float16",
    ),
    (
        "gmm list dtype",
        lambda n: grouped(n, groups=torch.tensor([3, 5], dtype=I32)),
        "must be int64",
    ),
    ("gmm list length", lambda n: grouped(n, groups=(3, 4, 1)), r"group_list's shape is \(3,\)"),
    ("gmm sum", lambda n: grouped(n, groups=(3, 6)), "group_list is .*end at most at x's 8 rows"),
    ("gmm negative", lambda n: grouped(n, groups=(-1, 9)), r"group_list is \[-1, 9\]"),
    ("gmm cumulative", lambda n: grouped(n, groups=(5, 3), group_list_type=0), "means cumulative"),
    ("gmm no list", lambda n: grouped(n, groups=None), "group_list is None"),
    ("gmm form", lambda n: grouped(n, group_list_type=2), "group_list_type is 2"),
    ("gmm split", lambda n: grouped(n, split_item=0), "split_item is 0"),
    ("gmm wide", lambda n: grouped(n, w=z(2, 64, 65537)), "inner axis is 65537"),
    ("gmm groups", lambda n: grouped(n, z(8, 2), z(1025, 2, 2), groups=(8, *[0] * 1024)), "1025"),
    ("gmm int8 fp16", lambda n: grouped8(n, scale=[z(2, 32, dtype=F32)]), "gives torch.float16"),
    ("gmm int8 scale", lambda n: grouped8(n, scale=[z(2, 32, dtype=F16)]), "scale's dtype"),
    ("gmm int8 shape", lambda n: grouped8(n, scale=[z(2, 16)]), "scale's shape"),
    (
        "gmm int8 token",
        lambda n: grouped8(n, per_token_scale=[z(8)]),
        "per_token_scale is torch.bf",
    ),
    ("gmm int8 bare", lambda n: grouped8(n, scale=None, per_token_scale=None), "must be int32"),
    ("quantise int", lambda n: n.npu_dynamic_quant(z(2, 8, dtype=F32)), "input's dtype"),
    ("qmm wide", lambda n: quant(n, x2=z(64, 65536, dtype=I8), scale=z(65536, dtype=F32)), "65535"),
    ("qmm token", lambda n: quant(n, pertoken_scale=z(3, dtype=F32)), "one number for each of 4"),
    ("gate align", lambda n: gate(n, width=192), "half the width of x is 96.*multiple of 64"),
    (
        "gate sum",
        lambda n: gate(n, group_index=torch.tensor([4, 5])),
        "group_index is .* at most 8",
    ),
    ("gate index", lambda n: gate(n, group_index=torch.tensor([3, 5], dtype=I32)), "must be int64"),
    ("gate scale", lambda n: gate(n, weight_scale=z(2, 256)), "weight_scale is torch.bfloat16"),
    ("gate token", lambda n: gate(n, activation_scale=z(8, dtype=F32)), "activation_scale is"),
    ("format", lambda n: n.npu_format_cast(z(8, 8), 3), "acl_format is 3"),
    ("format fp32", lambda n: n.npu_format_cast(z(8, 8, dtype=F32), 29), "input's dtype"),
    ("scatter mode", lambda n: scatter(n, cache_mode="PA_NZ"), "cache_mode is PA_NZ"),
    ("scatter twice", lambda n: scatter(n, (3, 3)), "slot_mapping is .*no slot may come twice"),
    ("scatter far", lambda n: scatter(n, (3, 64)), "slot_mapping is .*there are 64 slots"),
    ("scatter slots", lambda n: scatter(n, kind=torch.int16), "slot_mapping's dtype"),
    ("scatter strides", lambda n: scatter(n, key=turned(2, 2, 128)), "key's strides"),
    ("scatter dtype", lambda n: scatter(n, value=z(2, 2, 128, dtype=F16)), "value's dtype"),
    ("scatter shape", lambda n: scatter(n, key=z(2, 1, 128)), "key's shape"),
    ("fia scale", lambda n: attend(n, scale=1.0), "scale is 1.0, but that is the default"),
    (
        "fia page",
        lambda n: attend(n, k=z(6, 24, 256), v=z(6, 24, 256), block_size=24),
        "_size is 24",
    ),
    (
        "fia big page",
        lambda n: attend(n, k=z(6, 1040, 256), v=z(6, 1040, 256), block_size=1040),
        "104",
    ),
    ("fia page shape", lambda n: attend(n, block_size=32), "pages of 32 tokens"),
    ("fia not cumulative", lambda n: attend(n, actual_seq_lengths=[3, 4]), "running sum that ends"),
    ("fia no lengths", lambda n: attend(n, actual_seq_lengths=None), "actual_seq_lengths is None"),
    ("fia no kv", lambda n: attend(n, actual_seq_lengths_kv=None), "actual_seq_lengths_kv is None"),
    ("fia kv sum", lambda n: attend(n, actual_seq_lengths_kv=[20, 49]), "each sequence's own"),
    ("fia kv short", lambda n: attend(n, actual_seq_lengths_kv=[2, 9]), "at least its queries"),
    ("fia heads", lambda n: attend(n, num_heads=8), "num_heads is 8"),
    ("fia groups", lambda n: attend(n, num_key_value_heads=3), "num_key_value_heads is 3"),
    ("fia ratio", lambda n: attend(n, q=z(7, 130, 128), num_heads=130), "num_key_value_heads is 2"),
    ("fia 257", lambda n: attend(n, q=z(7, 257, 128), num_heads=257), "256 is the most"),
    ("fia mask", lambda n: attend(n, atten_mask=mask(False)), "1 hides a key"),
    ("fia no mask", lambda n: attend(n, atten_mask=None), "atten_mask is None"),
    ("fia mask shape", lambda n: attend(n, atten_mask=z(7, 20, dtype=I8)), "2048 by 2048"),
    ("fia mask dtype", lambda n: attend(n, atten_mask=z(2048, 2048)), "atten_mask's dtype"),
    ("fia sparse", lambda n: attend(n, sparse_mode=0), "sparse_mode is 0"),
    (
        "fia table",
        lambda n: attend(n, block_table=torch.tensor([[1, 2], [3, 9]], dtype=I32)),
        "6 pa",
    ),
    (
        "fia table dtype",
        lambda n: attend(n, block_table=torch.tensor([[1, 2], [3, 4]])),
        "be int32",
    ),
    ("fia fp32", lambda n: attend(n, q=z(7, 4, 128, dtype=F32)), "query's dtype is torch.float32"),
    ("fia fp16", lambda n: attend(n, k=z(6, 16, 256, dtype=F16)), "key's dtype is torch.float16"),
    ("fia strides", lambda n: attend(n, q=turned(7, 4, 128)), "query's strides"),
    ("mrope width", lambda n: mrope(n, cache=z(9, 48)), "width of cos_sin_cache is 48"),
    ("mrope head", lambda n: mrope(n, cache=z(9, 160)), "a head has 128"),
    ("mrope dtype", lambda n: mrope(n, cache=z(9, 64, dtype=F32)), "cos_sin_cache's dtype"),
    ("mrope position", lambda n: mrope(n, at=torch.tensor([0, 1, 9])), "positions is 9"),
]


@pytest.mark.parametrize("call", VALID, ids=lambda f: f.__name__)
def test_what_the_violations_start_from_is_allowed(
    call: Callable[..., Any], ops: AscendOps
) -> None:
    call(ops.npu)


@pytest.mark.parametrize(
    "call, message", [v[1:] for v in VIOLATIONS], ids=[v[0] for v in VIOLATIONS]
)
def test_a_violation_is_refused(call: Callable[[Any], Any], message: str, a3: AscendOps) -> None:
    with pytest.raises(Refusal, match=message) as refused:
        call(a3.npu)
    assert str(refused.value).startswith("npu_") and ", but " in str(refused.value)


def test_4097_sequences_are_refused(a3: AscendOps) -> None:
    count = 4097
    with pytest.raises(Refusal, match="the number of sequences is 4097, but 4096 is the most"):
        attend(
            a3.npu, q=z(count, 4, 128), actual_seq_lengths=list(range(1, count + 1)),
            actual_seq_lengths_kv=[1] * count, block_table=torch.zeros(count, 1, dtype=I32),
        )  # fmt: skip


def test_head_sizes_of_tnd(a3: AscendOps) -> None:
    small = {"q": z(7, 4, 64), "k": z(6, 16, 128), "v": z(6, 16, 128)}
    with pytest.raises(Refusal, match="the head size is 64, but TND takes one of"):
        attend(a3.npu, **small)
    attend(virtual_npu.connect("Ascend950PR_9599").npu, **small)


@pytest.mark.parametrize("chip", ["Ascend910B1", "Ascend910_9391"])
def test_fp8_is_refused_on_a2_and_a3(chip: str) -> None:
    npu = virtual_npu.connect(chip).npu
    with pytest.raises(Refusal, match=f"x's dtype is torch.float8_e4m3fn, but {chip} has no FP8"):
        grouped(npu, z(8, 64).to(FP8), z(2, 64, 32).to(FP8))
    with pytest.raises(Refusal, match="dst_type is torch.float8_e4m3fn"):
        npu.npu_dynamic_quant(z(2, 8), dst_type=FP8)


def test_torch_npus_own_checks_come_first(a3: AscendOps) -> None:
    with pytest.raises(RuntimeError, match="k dim of x1 and x2 need be same"):
        quant(a3.npu, x2=z(32, 32, dtype=I8))
    with pytest.raises(RuntimeError, match="group_type only supports"):
        grouped(a3.npu, group_type=None)
    with pytest.raises(RuntimeError, match="the scale 1st dim value must be 1 or x2 n dim value"):
        quant(a3.npu, scale=z(16, dtype=F32))
    with pytest.raises(RuntimeError, match="When bias dtype is float16"):
        quant(a3.npu, bias=z(32, dtype=F16))
    with pytest.raises(RuntimeError, match="Unknown keyword argument 'bogus'"):
        a3.npu.npu_swiglu(z(2, 8), bogus=1)


def test_an_operator_without_semantics_is_refused_by_name(a3: AscendOps) -> None:
    with pytest.raises(NotImplementedError, match="npu::npu_rotary_mul"):
        a3.npu.npu_rotary_mul(z(1, 2, 3, 64), z(1, 2, 1, 64), z(1, 2, 1, 64))


def test_without_an_active_chip_nothing_is_computed(a3: AscendOps) -> None:
    with pytest.raises(Refusal, match="npu_swiglu: no virtual NPU is active"):
        torch.ops.npu.npu_swiglu(z(2, 8))


def test_rows_of_no_group_are_undefined(a3: AscendOps) -> None:
    (y,) = grouped(a3.npu, groups=(3, 2))
    assert not y[:5].isnan().any() and y[5:].isnan().all()
    codes, scales = gate(a3.npu, group_index=torch.tensor([3, 2]))
    assert scales[5:].isnan().all() and codes[5:].eq(127).all()


def test_choices_of_foreign_experts_have_no_row(a3: AscendOps) -> None:
    ids = torch.tensor([[0, 5], [4, 1], [5, 4], [3, 2]], dtype=I32)
    x, row_idx, counts, _ = init(a3.npu, torch.ones(4, 64).bfloat16(), ids,
                                 active_expert_range=[4, 8])  # fmt: skip
    assert row_idx.tolist() == [-1, 2, 0, -1, 3, 1, -1, -1] and counts.tolist() == [2, 2, 0, 0]
    assert x[4:].isnan().all() and x[:4].eq(1).all()


def test_tiles_cannot_be_read_as_rows(a3: AscendOps) -> None:
    tiles = a3.npu.npu_format_cast(z(2, 64, 32, dtype=I8), 29)
    assert a3.npu.get_npu_format(tiles) == 29
    uses: list[Callable[[], Any]] = [
        lambda: tiles[0],
        lambda: tiles.mT,
        lambda: tiles.view(128, 32),
        lambda: tiles.float(),
        lambda: tiles.clone(),
        lambda: tiles + 1,
        lambda: a3.npu.npu_swiglu(tiles),
    ]
    for use in uses:
        with pytest.raises(Refusal, match="FRACTAL_NZ, but only matrix products"):
            use()
    grouped8(a3.npu)
    a3.npu.npu_grouped_matmul(
        [z(8, 64, dtype=I8)], [tiles], scale=[z(2, 32)], per_token_scale=[z(8, dtype=F32)],
        group_list=torch.tensor([3, 5]), split_item=2, group_type=0, group_list_type=1,
        output_dtype=BF16,
    )  # fmt: skip
