"""The chips a kernel is compiled for, and what one of their compute units holds.

Sources: AMD Instinct MI300 (CDNA3) and CDNA4 instruction set architecture documents; LLVM, "User
Guide for AMDGPU Backend"; CUDA C++ Programming Guide, "Compute Capabilities".
"""

from dataclasses import dataclass
from typing import Literal

from triton.backends.compiler import GPUTarget

from glm_portable.errors import UsageError


@dataclass(frozen=True)
class Chip:
    """One architecture. A compute unit (AMD) or SM (NVIDIA) has four SIMDs (sub-partitions).

    lanes: threads in a wave (warp).
    shared_limit: bytes of LDS (shared memory) that one workgroup may have.
    shared_per_unit: bytes that the workgroups on one compute unit share.
    shared_reserved: bytes that the system takes of these for each workgroup.
    registers: 32-bit registers of one SIMD for each lane (AMD: VGPRs and AGPRs together).
    granule: registers are given to a wave in multiples of this.
    max_waves: waves one SIMD can hold.
    elf_machine: EF_AMDGPU_MACH in the ELF header's flags (AMD).
    """

    name: str
    vendor: Literal["hip", "cuda"]
    lanes: int
    shared_limit: int
    shared_per_unit: int
    shared_reserved: int
    registers: int
    granule: int
    max_waves: int
    elf_machine: int = 0

    SIMDS = 4

    @property
    def is_amd(self) -> bool:
        return self.vendor == "hip"

    @property
    def target(self) -> GPUTarget:
        """The chip as Triton's compiler wants it named."""
        arch = self.name if self.is_amd else int(self.name.removeprefix("sm_"))
        return GPUTarget(self.vendor, arch, self.lanes)

    def waves(self, registers: int, scalars: int = 0) -> int:
        """Waves of one SIMD that fit beside each other, by registers alone.

        scalars: SGPRs. A SIMD has 800, so a kernel with more than 100 of them (which take 112)
        leaves room for 7 waves.
        """
        taken = max(self.granule, -(-registers // self.granule) * self.granule)
        limit = 7 if self.is_amd and scalars > 100 else self.max_waves
        return min(limit, self.registers // taken)

    def workgroups(self, waves: int, shared: int, num_warps: int) -> int:
        """Workgroups of `num_warps` waves that one compute unit holds at a time.

        waves: what `waves` says. shared: bytes a workgroup uses.
        """
        by_registers = waves * self.SIMDS // num_warps
        by_shared = self.shared_per_unit // max(1, shared + self.shared_reserved)
        return min(by_registers, by_shared)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("gfx942", "hip", 64, 65_536, 65_536, 0, 512, 8, 8, 0x4C),
        Chip("gfx950", "hip", 64, 163_840, 163_840, 0, 512, 8, 8, 0x4F),
        Chip("sm_90", "cuda", 32, 232_448, 233_472, 1_024, 512, 8, 16),
        Chip("sm_100", "cuda", 32, 232_448, 233_472, 1_024, 512, 8, 16),
    )
}


def chip(name: str) -> Chip:
    """The chip of this name. Raises UsageError for one that is not known."""
    if name not in CHIPS:
        raise UsageError(f"no chip is called {name!r}; choose one of {', '.join(CHIPS)}.")
    return CHIPS[name]
