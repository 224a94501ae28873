"""What torch_npu's operators compute and what they refuse, from the operators' documents.

Each function takes the chip and then the operator's own arguments. Where a document leaves
something undefined, it is made harmful here: rows that no group owns hold NaN (or a large integer).
"""

from collections.abc import Callable
from typing import Any

from glm_portable.virtual.npu.semantics import (
    attention,
    cache,
    grouped,
    quantised,
    rotary,
    router,
    routing,
    rows,
)

KERNELS: dict[str, Callable[..., Any]] = {
    "npu_rms_norm": rows.rms_norm,
    "npu_add_rms_norm": rows.add_rms_norm,
    "npu_swiglu": rows.swiglu,
    "npu_moe_gating_top_k": router.gating_top_k,
    "npu_moe_init_routing_v2": routing.init_routing,
    "npu_moe_token_unpermute": routing.token_unpermute,
    "npu_grouped_matmul": grouped.grouped_matmul,
    "npu_dynamic_quant": quantised.dynamic_quant,
    "npu_quant_matmul": quantised.quant_matmul,
    "npu_dequant_swiglu_quant": quantised.dequant_swiglu_quant,
    "npu_format_cast": quantised.format_cast,
    "npu_mrope": rotary.mrope,
    "npu_scatter_pa_kv_cache": cache.scatter_pa_kv_cache,
    "npu_fused_infer_attention_score": attention.fused_infer_attention_score,
}
WITHOUT_META = frozenset({"npu_format_cast"})
