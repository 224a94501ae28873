"""What the kernels must know of a chip: its architecture and its dialect of FP8."""

import importlib.metadata
from dataclasses import dataclass

import torch

from glm_portable.errors import UsageError

OCP, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


@dataclass(frozen=True)
class Target:
    """An architecture in its vendor's spelling: gfx942, gfx950, sm_90, sm_100.

    Raises UsageError for one without matrix instructions for FP8.
    """

    arch: str

    def __post_init__(self) -> None:
        if self.is_amd and self.arch not in ("gfx942", "gfx950"):
            raise UsageError(
                f"architecture {self.arch!r} is not supported; use an MI300 (gfx942) or an "
                "MI350 (gfx950)."
            )
        if not self.is_amd and not (self._capability or 0) >= 90:
            raise UsageError(
                f"architecture {self.arch!r} is not supported; use compute capability 9.0 (sm_90, "
                "Hopper) or newer."
            )

    @property
    def is_amd(self) -> bool:
        return self.arch.startswith("gfx")

    @property
    def _capability(self) -> int | None:
        digits = self.arch.removeprefix("sm_")
        return int(digits) if self.arch.startswith("sm_") and digits.isdecimal() else None

    @property
    def fp8(self) -> torch.dtype:
        """The e4m3 that the chip multiplies: FNUZ on gfx942 (CDNA 3 ISA), OCP on all others."""
        return FNUZ if self.arch == "gfx942" else OCP

    def check(self, dtype: torch.dtype) -> None:
        """Raise UsageError for the other dialect, which would be emulated, many times as slowly."""
        if dtype in (OCP, FNUZ) and dtype != self.fp8:
            raise UsageError(
                f"{dtype} on {self.arch}: this chip computes with {self.fp8}, and would emulate "
                "the other FP8 slowly; give it weights packed by its own backend and a KV cache of "
                f"bfloat16 or {self.fp8}."
            )

    @property
    def fp8_top(self) -> float:
        """Where activations are scaled to. On FNUZ 224 = 448 / 2 and not its largest value, 240:
        so every activation gets the code that OCP gives it, and only the scale doubles."""
        return 224.0 if self.fp8 == FNUZ else 448.0

    @property
    def shared_limit(self) -> int:
        """Bytes of LDS (shared memory) that one workgroup may have. Sources: CDNA3 and CDNA4
        instruction set architecture documents; CUDA C++ Programming Guide, compute capabilities."""
        return {"gfx942": 65_536, "gfx950": 163_840}.get(self.arch, 232_448)


def versions() -> dict[str, str]:
    """What a kernel's speed depends on beside the chip."""
    return {"torch": torch.__version__, "triton": importlib.metadata.version("triton")}
