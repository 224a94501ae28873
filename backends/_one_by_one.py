"""A backend that computes every token by itself: slow, and no neighbour can change a bit of it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Ops, Step, Weight


class OneByOne:
    """`Ops` of a backend on the host, called for one token after the other."""

    batch_invariant = True

    def __init__(self, backend: Ops, describe: Callable[[], dict[str, str]]) -> None:
        self._ops, self.describe = backend, describe
        self.name, self.device, self.page_size = backend.name, backend.device, backend.page_size

    def pack(self, w: Weight) -> Weight:
        """As the backend."""
        return self._ops.pack(w)

    def linear(self, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
        """Row by row."""
        return torch.cat([self._ops.linear(x, w, bias_N) for x in _rows(x_TR)])

    def rms_norm(
        self,
        x_TD: Tensor,
        w_D: Tensor,
        eps: float,
        residual_TD: Tensor | None = None,
        feeds: Weight | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Row by row, of the sums."""
        total = x_TD if residual_TD is None else x_TD + residual_TD
        normed = [self._ops.rms_norm(x, w_D, eps, None, feeds)[0] for x in _rows(total)]
        return torch.cat(normed), total

    def silu_mul(self, x_T2F: Tensor, feeds: Weight | None = None) -> Tensor:
        """Row by row."""
        return torch.cat([self._ops.silu_mul(x, feeds) for x in _rows(x_T2F)])

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
        """Token by token."""
        rows = zip(*map(_rows, (q_THC, k_TGC, v_TGC, cos_TC, sin_TC)), strict=True)
        return torch.cat([
            self._ops.rope_store(q, k, v, cos, sin, cache, alone, q_norm_C, k_norm_C, eps)
            for (q, k, v, cos, sin), alone in zip(rows, _steps(step), strict=True)
        ])  # fmt: skip

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        """Token by token."""
        pairs = zip(_rows(q_THC), _steps(step), strict=True)
        return torch.cat([self._ops.attend(q, cache, alone, scale) for q, alone in pairs])

    def route(
        self, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
    ) -> tuple[Tensor, Tensor]:
        """Row by row."""
        found = [self._ops.route(x, gate_ED, bias_E, cfg) for x in _rows(x_TD)]
        weights, experts = zip(*found, strict=True)
        return torch.cat(weights), torch.cat(experts)

    def experts(
        self,
        x_TD: Tensor,
        gate_up_E2FD: Weight,
        down_EDF: Weight,
        weights_TK: Tensor,
        experts_TK: Tensor,
    ) -> Tensor:
        """Row by row."""
        rows = zip(_rows(x_TD), torch.split(weights_TK, 1), torch.split(experts_TK, 1), strict=True)
        return torch.cat([self._ops.experts(x, gate_up_E2FD, down_EDF, w, e) for x, w, e in rows])


def _rows(x: Tensor) -> list[Tensor]:
    """In memory of their own: some libraries compute by the alignment."""
    return [row.clone() for row in torch.split(x, 1)]


def _steps(step: Step) -> Iterator[Step]:
    """Of each token alone, behind those before it."""
    begin = 0
    for b, end in enumerate(step.query_ends):
        for t in range(begin, end):
            length = step.kv_lengths[b] - end + t + 1
            yield Step(
                positions_T=step.positions_T[t : t + 1],
                slots_T=step.slots_T[t : t + 1],
                query_ends_B=step.query_ends_B.new_ones(1),
                kv_lengths_B=step.kv_lengths_B.new_full((1,), length),
                block_table_BP=step.block_table_BP[b : b + 1],
                query_ends=(1,),
                kv_lengths=(length,),
            )
        begin = end
