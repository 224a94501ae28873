"""What CUDA and ROCm share: every op, from torch's vendor libraries and from `kernels/`.

| op | by |
|---|---|
| linear, plain weights | torch: cuBLASLt, hipBLASLt |
| linear, FP8 per channel with FP8 activations | torch._scaled_mm with row-wise scales, bf16 |
| linear, other FP8 (blocks, bf16 activations, odd heights) | kernels/grouped_gemm.py |
| experts, attention, router, norm, rope and store, silu | kernels/ |
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends._host import driver, processor, versions
from glm_portable.backends.reference import quantize_per_token
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.kernels import attention, norm, rope, route, silu, tiles
from glm_portable.kernels.align import align
from glm_portable.kernels.grouped_gemm import Matrices, combine, gemm, grouped_gemm
from glm_portable.kernels.launch import Launch, on
from glm_portable.kernels.quantize import quantize
from glm_portable.kernels.target import FNUZ, OCP, Target
from glm_portable.kernels.tiles import Tile
from glm_portable.ops import KVCache, Step, Weight

log = logging.getLogger(__name__)

NARROWEST_STEP = 32
"""What a matrix instruction for FP8 takes along K at least; narrower blocks are dequantised."""
ALIGNMENT = 16
"""torch._scaled_mm takes widths that are multiples of it; a lane loads so many codes at once."""


@dataclass(frozen=True)
class Packed:
    """matrices: (E, N, K), E = 1 for a linear layer. activations: what they are rounded to."""

    matrices: Matrices
    activations: torch.dtype | None


class Coded(Tensor):
    """A tensor in the model's type that brings its FP8 codes along, one scale a token.

    Like `torch.nn.Parameter` it is a plain tensor to every operation, and what an operation returns
    is one too: no codes outlive the numbers they stand for. Nobody writes into it.
    """

    codes: Tensor
    scale: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch does

    @classmethod
    def of(cls, x: Tensor, codes: Tensor, scale: Tensor) -> "Coded":
        coded = x.as_subclass(cls)
        coded.codes, coded.scale = codes, scale
        return coded


class GpuOps:
    """`ops.Ops` on one kind of GPU.

    device: where the tensors are. target: the architecture the kernels are for. launch: starts
    them; a simulator's launch, with tensors on the host, runs the same code without the chip.
    """

    collectives = "nccl"  # torch calls RCCL so too
    page_size = 64  # the keys of one step of the attention kernel: one look-up serves them all

    def __init__(self, name: str, device: torch.device, target: Target, launch: Launch) -> None:
        self.name, self.device, self.target = name, device, target
        self.launch = on(target, launch)
        self.fp8_pages = target.fp8
        self._told: set[str] = set()

    def rows_alike(self) -> "GpuOps":
        """The backend whose every row has the same bits in any company."""
        from glm_portable.backends._gpu_alike import AlikeOps  # which is built on this class

        return AlikeOps(self.name, self.device, self.target, self.launch)

    def pack(self, w: Weight) -> Weight:
        """FP8 in the chip's dialect; INT8 and blocks too narrow for it in the model's type.

        Raises UsageError for NaN codes, which only a damaged file has.
        """
        if w.scale is None:
            return self._packed(w, w.data, None, None, None)
        kind = w.data.dtype if w.dynamic_activations else None
        if w.data.dtype != OCP or not _kernels_take(w):
            self._tell_of_dequantising(w)
            plain = w.dequantize()
            return self._packed(w, plain, None, None, kind if kind == torch.int8 else None)
        data, scale = to_dialect(w.data, w.scale.float(), self.target.fp8)
        if data.dim() == 2:  # Air's dense MLP has 1,368 columns under TP8
            data = widened(data, -(-data.shape[1] // ALIGNMENT) * ALIGNMENT)
        activations = None if kind is None else self.target.fp8
        return self._packed(w, data, scale, w.block, activations)

    def linear(self, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
        """x @ w.T + bias."""
        packed = self._unpack(w)
        b, kind = packed.matrices, packed.activations
        if b.scale is None:
            x = x_TR if kind is None else quantize_per_token(x_TR, kind)
            return F.linear(x, b.data[0], bias_N)
        n, k = b.data.shape[1:]
        if len(x_TR) == 0:  # torch's FP8 product refuses it
            return x_TR.new_empty(0, n)
        x, x_scale = self._activations(x_TR, kind)
        x = widened(x, k)
        aligned = n % ALIGNMENT == 0
        if x_scale is not None and b.block is None and aligned and w.dtype == torch.bfloat16:
            return torch._scaled_mm(
                x, b.data[0].T, scale_a=x_scale, scale_b=b.scale[0].T, bias=bias_N,
                out_dtype=w.dtype,
            )  # fmt: skip
        tile = self._tile(packed, len(x_TR), 1)
        return gemm(self.launch, x, x_scale, b, tile, w.dtype, bias_N)

    def rms_norm(
        self,
        x_TD: Tensor,
        w_D: Tensor,
        eps: float,
        residual_TD: Tensor | None = None,
        feeds: Weight | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(the RMS norm of x + residual, x + residual), the norm with its codes if `feeds` is FP8.

        In a layer with experts it saves 3 of 24 launches: one before q, k and v, and two where the
        experts and the shared expert each quantised the same rows.
        """
        if not self._takes_codes(feeds):
            return norm.rms_norm(self.launch, x_TD, w_D, eps, residual_TD)
        normed, codes, scale, total = norm.rms_norm_quantize(
            self.launch, self.target, x_TD, w_D, eps, residual_TD
        )
        return Coded.of(normed, codes, scale), total

    def silu_mul(self, x_T2F: Tensor, feeds: Weight | None = None) -> Tensor:
        """silu(first half) * second half, with its codes if `feeds` is FP8: one launch saved."""
        if not self._takes_codes(feeds):
            return silu.silu_mul(self.launch, x_T2F)
        return Coded.of(*silu.silu_mul_both(self.launch, self.target, x_T2F))

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
        """Norm, rotation and cache in one pass over the heads."""
        return rope.rope_store(
            self.launch, q_THC, k_TGC, v_TGC, cos_TC, sin_TC, cache, step.slots_T,
            q_norm_C, k_norm_C, eps,
        )  # fmt: skip

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        """Causal grouped-query attention over the pages."""
        return attention.attend(self.launch, self.target, q_THC, cache, step, scale)

    def route(
        self, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
    ) -> tuple[Tensor, Tensor]:
        """In float32 throughout."""
        return route.route(self.launch, x_TD, gate_ED, bias_E, cfg)

    def experts(
        self,
        x_TD: Tensor,
        gate_up_E2FD: Weight,
        down_EDF: Weight,
        weights_TK: Tensor,
        experts_TK: Tensor,
    ) -> Tensor:
        """Two grouped products around the gate, and a sum over each token's experts."""
        tokens, k = experts_TK.shape
        if tokens == 0:
            return torch.empty_like(x_TD)
        gate_up, down = self._unpack(gate_up_E2FD), self._unpack(down_EDF)
        tile = self._tile(gate_up, tokens, k)
        down_tile = replace(self._tile(down, tokens, k), block_m=tile.block_m)
        count = len(gate_up.matrices.data)
        experts_TK = experts_TK.contiguous()
        alignment = align(self.launch, experts_TK, count, tile.block_m)
        x, x_scale = self._activations(x_TD, gate_up.activations)
        both = grouped_gemm(
            self.launch, x, x_scale, gate_up.matrices, alignment, tile, x_TD.dtype, tokens * k
        )
        hidden, hidden_scale = self._gated(both, down.activations)
        routing = weights_TK.to(torch.float32).flatten()
        parts = grouped_gemm(
            self.launch, hidden, hidden_scale, down.matrices, alignment, down_tile, x_TD.dtype,
            tokens * k, routing,
        )  # fmt: skip
        return combine(self.launch, parts, experts_TK, count)

    def describe(self) -> dict[str, str]:
        """Chip, driver, runtime and compiler, as far as the system tells them."""
        if self.device.type == "cpu":
            chip = {"chip": f"{self.target.arch}, simulated on {processor()}"}
            return chip | versions("triton")
        chip = {"chip": f"{torch.cuda.get_device_name(self.device)} ({self.target.arch})"}
        if self.target.is_amd:
            chip |= driver(Path("/sys/module/amdgpu/version"), r"^(\S+)")
            return chip | {"ROCm": f"{torch.version.hip}"} | versions("triton")
        chip |= driver(Path("/proc/driver/nvidia/version"), r"Module\s.*?(\d+(?:\.\d+)+)")
        return chip | {"CUDA": f"{torch.version.cuda}"} | versions("triton")

    def _tell_of_dequantising(self, w: Weight) -> None:
        """Once for each kind of weight, not for each of thousands."""
        kind = str(w.data.dtype).removeprefix("torch.")
        kind += "" if w.block is None else f" with a scale for {w.block[0]} x {w.block[1]} numbers"
        if kind in self._told:
            return
        self._told.add(kind)
        log.warning(
            "Weights in %s (the first: %s) are kept in %s and take the memory and time of that: "
            "the kernels multiply FP8 whose scales serve a channel, or rows and a multiple of %d "
            "columns.",
            kind, " x ".join(map(str, w.data.shape)), w.dtype, NARROWEST_STEP,
        )  # fmt: skip

    def _packed(
        self,
        w: Weight,
        data: Tensor,
        scale: Tensor | None,
        block: tuple[int, int] | None,
        activations: torch.dtype | None,
    ) -> Weight:
        data = data.contiguous()
        stacked = data if data.dim() == 3 else data.unsqueeze(0)
        scales = None if scale is None else scale.reshape(len(stacked), -1, scale.shape[-1])
        packed = Packed(
            Matrices(stacked, None if scales is None else scales.contiguous(), block), activations
        )
        data = data[..., : w.data.shape[-1]]
        return replace(w, data=data, scale=scale, block=block, packed=packed)

    def _unpack(self, w: Weight) -> Packed:
        assert isinstance(w.packed, Packed), "the weight was not packed by this backend"
        self.target.check(w.packed.matrices.data.dtype)
        return w.packed

    def _takes_codes(self, w: Weight | None) -> bool:
        return w is not None and self._unpack(w).activations == self.target.fp8

    def _activations(self, x_TR: Tensor, kind: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        """(x as the product takes it, its scales): FP8 codes, or rounded to INT8's grid."""
        if kind is None:
            return x_TR, None
        if kind == torch.int8:
            return quantize_per_token(x_TR, kind), None
        if isinstance(x_TR, Coded):
            return x_TR.codes, x_TR.scale
        return quantize(self.launch, self.target, x_TR)

    def _gated(self, x_T2F: Tensor, kind: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        """The gate, and with it the rounding for the next product."""
        if kind == self.target.fp8:
            return silu.silu_mul_quantize(self.launch, self.target, x_T2F)
        return self._activations(silu.silu_mul(self.launch, x_T2F), kind)

    def _tile(self, packed: Packed, tokens: int, chosen: int) -> Tile:
        """From the table or the rule."""
        b, w8a16 = packed.matrices, packed.activations is None
        count, n, k = b.data.shape
        tile = tiles.choose(self.target, count, n, k, b.data.dtype, tokens, chosen, w8a16)
        return within_blocks(tile, b)


def within_blocks(tile: Tile, b: Matrices) -> Tile:
    """The tile with steps that do not cross a block of scales."""
    return tile if b.block is None else replace(tile, block_k=math.gcd(tile.block_k, b.block[1]))


def to_dialect(data: Tensor, scale: Tensor, dialect: torch.dtype) -> tuple[Tensor, Tensor]:
    """(data, scale) of OCP e4m3 in another dialect, with the same products, exactly.

    FNUZ has a bias of 8 where OCP has 7: every code means half as much, and the scale doubles.
    OCP's -0 is FNUZ's NaN and becomes 0. OCP's NaN codes (0x7f, 0xff) would turn into numbers:
    UsageError.
    """
    codes = data.view(torch.uint8)
    if ((codes & 0x7F) == 0x7F).any():
        raise UsageError(
            "an FP8 weight holds NaN codes (0x7f or 0xff); the file is damaged, download it again."
        )
    if dialect == OCP:
        return data, scale
    return codes.masked_fill(codes == 0x80, 0).view(FNUZ), scale * 2


def widened(x_TR: Tensor, width: int) -> Tensor:
    """x with columns of zeros behind its own, which add nothing to a product."""
    if x_TR.shape[1] == width:
        return x_TR
    wide = torch.zeros(len(x_TR), width, dtype=x_TR.dtype, device=x_TR.device)
    wide[:, : x_TR.shape[1]] = x_TR
    return wide


def _kernels_take(w: Weight) -> bool:
    return w.block is None or (w.block[0] > 1 and w.block[1] % NARROWEST_STEP == 0)


def check_torch(
    backend: str, found: dict[str, str | None], is_available: Callable[[], bool]
) -> None:
    """Raise UsageError unless this torch is built for the backend and sees a GPU.

    found: the version of each vendor's runtime that torch was built for, or None.
    """
    if found[backend] is None:
        other = next((name for name, version in found.items() if version), None)
        built = f"for {other.upper()}" if other else "for the CPU alone"
        instead = f"--backend {other}" if other else "--backend cpu"
        raise UsageError(
            f"backend {backend!r} needs a PyTorch built for {backend.upper()}, and this one "
            f"({torch.__version__}) is built {built}; install that one, or use {instead}."
        )
    if not is_available():
        raise UsageError(
            f"backend {backend!r}: torch sees no GPU; check the driver and the device permissions, "
            "or use --backend cpu."
        )
