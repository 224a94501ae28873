"""Rows as a few random projections: what their differences are estimated by, without the rows.

A row is multiplied with WIDTH columns of random signs over the root of its length. Sums of squares
survive that (Johnson and Lindenstrauss; signs: Achlioptas 2003): over many rows the relative error
and the slope are those of the rows themselves. The signs are bits of SHAKE-128, so any language
can draw them again.
"""

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WIDTH = 32


@lru_cache(maxsize=16)
def signs(size: int, seed: int) -> Tensor:
    """(size, WIDTH) of 1 and -1, float32: bit 1 is -1, the first bit of a byte its highest."""
    stream = hashlib.shake_128(f"glm-portable {seed} {size}".encode()).digest(size * WIDTH // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).reshape(size, WIDTH)
    return 1 - 2 * torch.from_numpy(bits.astype(np.float32))


def project(x_TD: Tensor, seed: int, begin: int = 0, size: int | None = None) -> Tensor:
    """(T, WIDTH) float64 on the host. x may be columns from `begin` on of rows of `size`."""
    x = x_TD.cpu().double()
    size = size or x.shape[1]
    chosen = signs(size, seed)[begin : begin + x.shape[1]]
    result: Tensor = x @ chosen.double() / size**0.5
    return result


def rms(x_TD: Tensor) -> Tensor:
    """(T,) float64 on the host."""
    return x_TD.cpu().double().square().mean(-1).sqrt()
