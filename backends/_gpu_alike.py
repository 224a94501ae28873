"""The GPU backends with each row's result the same in every bit, whatever rows are beside it.

A vendor's library picks how to compute a product by the number of its rows, and so do the tables of
tuned tiles and the attention that splits the keys of short queries. Here every product with a
weight is `kernels/grouped_gemm.py` at one tile for each shape and type, whatever the rows, and
attention is one launch for all queries. So one machine code serves any number of rows, and in it a
row of a matrix instruction's result depends on that row alone. The other kernels take a token at a
time in any case. Nothing is said of a sequence with infinite or NaN values: 0 times those is NaN.
"""

from torch import Tensor

from glm_portable.backends._gpu import ALIGNMENT, GpuOps, Packed, widened, within_blocks
from glm_portable.kernels import attention, tiles
from glm_portable.kernels.grouped_gemm import gemm
from glm_portable.kernels.tiles import Tile
from glm_portable.ops import KVCache, Step, Weight


class AlikeOps(GpuOps):
    """`GpuOps` without libraries, tables, and split keys."""

    batch_invariant = True  # a promise, which `verify ops` holds it to

    def pack(self, w: Weight) -> Weight:
        """As usual, and plain dense weights with rows that a lane can load 16 bytes of at once."""
        if w.scale is not None or w.data.dim() > 2:
            return super().pack(w)
        width = -(-w.data.shape[1] // ALIGNMENT) * ALIGNMENT
        return self._packed(w, widened(w.data, width), None, None, None)

    def linear(self, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
        """x @ w.T + bias."""
        packed = self._unpack(w)
        b = packed.matrices
        x, x_scale = self._activations(x_TR, packed.activations)
        tile = self._tile(packed, len(x), 1)
        x = widened(x, b.data.shape[2])
        return gemm(self.launch, x, x_scale, b, tile, w.dtype, bias_N)

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        """Each query over the keys that it sees, in order."""
        return attention.attend(self.launch, self.target, q_THC, cache, step, scale, alike=True)

    def _tile(self, packed: Packed, tokens: int, chosen: int) -> Tile:
        """The same for any number of tokens."""
        b = packed.matrices
        count, _, k = b.data.shape
        tile = tiles.fixed(self.target, count, k, b.data.dtype, packed.activations is None)
        return within_blocks(tile, b)
