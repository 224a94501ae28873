"""Ascend A2, A3 and 950, in torch_npu's own operators.

| op | by |
|---|---|
| linear | aclnn matmul; W8A8: npu_dynamic_quant, npu_quant_matmul (weight in FRACTAL_NZ) |
| rms_norm | npu_rms_norm, npu_add_rms_norm |
| silu_mul | npu_swiglu |
| rope_store | npu_rms_norm a head, npu_mrope, npu_scatter_pa_kv_cache with cache_mode Norm |
| attend | npu_fused_infer_attention_score, TND, paged, sparse_mode 3 |
| route | float32 gate product, npu_moe_gating_top_k |
| experts | npu_moe_init_routing_v2, npu_grouped_matmul, npu_swiglu, npu_moe_token_unpermute |
| experts, W8A8 | the same with quantisation, npu_dequant_swiglu_quant where its width allows it |

What the model may ask and no operator does is plain PyTorch: a router without normalised weights
and a rotation narrower than 32.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_portable.backends._host import driver, found, processor, versions
from glm_portable.backends.ascend import attention, experts, linear, router
from glm_portable.backends.ascend.chip import Chip
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step, Weight

__all__ = ["AscendOps", "connect", "virtual"]

DRIVER = Path("/usr/local/Ascend/driver/version.info")
CANN = Path("/usr/local/Ascend/ascend-toolkit/latest/version.cfg")


class AscendOps:
    """`ops.Ops` on one NPU.

    npu: the operators, torch.ops.npu or a simulation of it. device: where the tensors are.
    """

    name = "ascend"
    collectives = "hccl"
    formats = frozenset({"bf16", "w8a8", "int8"})
    page_size = 128
    fp8_pages = None  # its operators take no scales for them
    """What the attention operator recommends; it takes other multiples of 16 up to 1024."""

    def __init__(self, chip: Chip, npu: Any, device: torch.device) -> None:
        self.chip, self.npu, self.device = chip, npu, device
        self._mask = attention.causal_mask(device)

    def pack(self, w: Weight) -> Weight:
        """Transposed to (R, N); INT8 in FRACTAL_NZ. Raises UsageError for FP8."""
        return linear.pack(self.npu, self.chip, w)

    def readable(self, x: Tensor) -> Tensor:
        """INT8 weights, which `pack` has laid out in FRACTAL_NZ, as rows."""
        return linear.rows(self.npu, x)

    def linear(self, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
        """x @ w.T + bias."""
        return linear.linear(self.npu, x_TR, w, bias_N)

    def rms_norm(
        self,
        x_TD: Tensor,
        w_D: Tensor,
        eps: float,
        residual_TD: Tensor | None = None,
        feeds: Weight | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(the RMS norm of x + residual, x + residual)."""
        if residual_TD is None:
            return self.npu.npu_rms_norm(x_TD, w_D, eps)[0], x_TD
        normed, _, total = self.npu.npu_add_rms_norm(x_TD, residual_TD, w_D, eps)
        return normed, total

    def silu_mul(self, x_T2F: Tensor, feeds: Weight | None = None) -> Tensor:
        """silu(first half) * second half."""
        y: Tensor = self.npu.npu_swiglu(x_T2F)
        return y

    def rope_store(
        self,
        q_THC: Tensor,
        k_TGC: Tensor,
        v_TGC: Tensor,
        cos_TC: Tensor,
        sin_TC: Tensor,
        cache: KVCache,
        step: Step,
        q_norm_C: Tensor | None = None,
        k_norm_C: Tensor | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """Norm each head, rotate its first part, write into the pages, which have its type."""
        q = attention.head_norm(self.npu, q_THC, q_norm_C, eps)
        k = attention.head_norm(self.npu, k_TGC, k_norm_C, eps)
        q, k = attention.rotate(self.npu, q, k, cos_TC, sin_TC)
        attention.store(self.npu, k, v_TGC, cache, step)
        return q

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        """Causal grouped-query attention over the pages."""
        return attention.attend(self.npu, q_THC, cache, step, scale, self._mask)

    def route(
        self, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
    ) -> tuple[Tensor, Tensor]:
        """float32 throughout."""
        return router.route(self.npu, x_TD, gate_ED, bias_E, cfg)

    def experts(
        self,
        x_TD: Tensor,
        gate_up_E2FD: Weight,
        down_EDF: Weight,
        weights_TK: Tensor,
        experts_TK: Tensor,
    ) -> Tensor:
        """Sort by expert, two grouped products around the gate, sum over each token's experts."""
        return experts.experts(self.npu, x_TD, gate_up_E2FD, down_EDF, weights_TK, experts_TK)

    def describe(self) -> dict[str, str]:
        """Chip, driver, CANN and torch_npu, as far as the system tells them."""
        chip = f"{self.chip.name} ({self.chip.generation})"
        if self.device.type == "cpu":
            return {"chip": f"{chip}, simulated on {processor()}"} | versions("torch-npu")
        cann = found(CANN, r"^toolkit_running_version=\[([^\]]+)\]")
        said = {"chip": chip} | driver(DRIVER, r"^Version=(\S+)")
        return said | ({} if cann is None else {"CANN": cann}) | versions("torch-npu")


def connect() -> AscendOps:
    """The current NPU. Raises UsageError without torch_npu, without one, or on another chip."""
    try:
        importlib.import_module("torch_npu")
    except ModuleNotFoundError:
        raise UsageError(
            "backend 'ascend' needs the Python package torch-npu for this torch "
            f"({torch.__version__}): install torch-npu=={torch.__version__.split('+')[0]}."
        ) from None
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"backend 'ascend': torch_npu does not load ({error}): install CANN and source its "
            "set_env.sh."
        ) from None
    npu: Any = importlib.import_module("torch").npu
    if not npu.is_available():
        raise UsageError(
            "backend 'ascend': torch_npu sees no NPU; check `npu-smi info`, the device mounts "
            "(/dev/davinci*) and ASCEND_RT_VISIBLE_DEVICES, or use --backend cpu."
        )
    device = torch.device("npu", npu.current_device())
    return AscendOps(Chip.named(npu.get_device_name(device)), torch.ops.npu, device)


def virtual(soc: str, npu: Any, device: torch.device) -> AscendOps:
    """This backend over a simulation of the operators, as if on the chip `soc`."""
    return AscendOps(Chip.named(soc), npu, device)
