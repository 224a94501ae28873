"""FRACTAL_NZ, the layout of weights for the matrix unit, as a tensor that cannot be read as rows.

After `npu_format_cast(x, 29)` the memory holds tiles, so a view, a slice or an ordinary operator
on it is an error or garbage on the chip. Here it is an error, whichever operator it is, except the
few that are documented to take such a weight.
"""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from glm_portable.virtual.npu.refusal import Refusal

ND, FRACTAL_NZ = 2, 29
TAKE_NZ = {
    "npu::npu_grouped_matmul",
    "npu::npu_quant_matmul",
    "npu::npu_format_cast",
    "npu::get_npu_format",
}
HARMLESS = {"aten::detach", "aten::alias"}


class FractalNz(Tensor):
    """A weight in FRACTAL_NZ: has a shape and a type, and only matrix operators can read it."""

    rows: Tensor

    @staticmethod
    def __new__(cls, rows: Tensor) -> "FractalNz":
        made: FractalNz = Tensor._make_wrapper_subclass(
            cls, rows.shape, dtype=rows.dtype, device=rows.device
        )
        made.rows = rows
        return made

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes a keyword of its own
        return f"FractalNz({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a static method
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if name in HARMLESS:
            return FractalNz(args[0].rows)
        if name == "npu::get_npu_format":
            return FRACTAL_NZ
        if name not in TAKE_NZ:
            raise Refusal(
                f"{name}: an argument is in FRACTAL_NZ, but only matrix products read that layout; "
                "reshape, slice and copy a weight before npu_format_cast."
            )
        args, kwargs = tree_map(_rows, (args, kwargs or {}))
        return func(*args, **kwargs)


def _rows(value: Any) -> Any:
    return value.rows if isinstance(value, FractalNz) else value
