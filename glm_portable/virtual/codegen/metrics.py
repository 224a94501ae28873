"""What is read from a compiled kernel."""

from collections.abc import Mapping
from dataclasses import dataclass

from glm_portable.virtual.chips import Chip


class Disagreement(RuntimeError):
    """Two readers of one artifact read different things: neither can be trusted."""


@dataclass(frozen=True)
class Loop:
    """The hot loop: of the innermost loops, the one with the most matrix instructions.

    The whole kernel, if no loop has one.

    matrix: matrix instructions by their shape and type, such as 32x32x16_fp8_fp8.
    matrix_cycles: cycles these keep one SIMD's matrix unit busy (AMD; 0 where that is not known).
    valu: instructions of the vector unit (NVIDIA: of the arithmetic pipes), without the matrix's.
    shared: instructions that read or write LDS (shared memory).
    loads: loads from global memory, straight to LDS or not, by bytes for each lane.
    async_copies: those of them that go straight to LDS.
    full_waits: waits until nothing at all is outstanding from global memory.
    """

    instructions: int
    matrix: Mapping[str, int]
    matrix_cycles: int
    valu: int
    shared: int
    loads: Mapping[int, int]
    async_copies: int
    barriers: int
    full_waits: int

    @property
    def valu_per_matrix(self) -> float:
        """VALU instructions for each matrix instruction; 0 without one."""
        count = sum(self.matrix.values())
        return self.valu / count if count else 0.0

    @property
    def pressure(self) -> float:
        """Issue cycles of the vector unit for each cycle of the matrix unit.

        A vector instruction of a 64-lane wave takes a SIMD 4 cycles. Unlike instructions for each
        instruction, this compares loops with matrix instructions of different sizes. It is what
        the code asks for, not a time.
        """
        return 4 * self.valu / self.matrix_cycles if self.matrix_cycles else 0.0


@dataclass(frozen=True)
class Metrics:
    """A compiled kernel in numbers.

    registers: for each lane; on AMD VGPRs and AGPRs together, of which `accumulators` are AGPRs.
    scalars: SGPRs (AMD). spills: registers (AMD) or bytes stored and loaded (NVIDIA) that did not
    fit. scalar_spills: SGPRs kept in VGPRs. shared: bytes of LDS (shared memory).
    waves: that one SIMD holds. workgroups: that one compute unit (SM) holds.
    matrix: all matrix instructions; dialects: the types they multiply (bf16, f16, fp8...).
    loads: as in Loop, of the whole kernel.
    instructions: a digest of the instruction stream, which holds no paths and no addresses.
    """

    kernel: str
    chip: Chip
    num_warps: int
    registers: int
    accumulators: int
    scalars: int
    spills: int
    scalar_spills: int
    shared: int
    waves: int
    workgroups: int
    matrix: Mapping[str, int]
    dialects: frozenset[str]
    loop: Loop
    loads: Mapping[int, int]
    async_copies: int
    code_bytes: int
    instructions: str

    @property
    def instruction_count(self) -> int:
        """Instructions of a kernel for NVIDIA, which all have 16 bytes (AMD's have 4 to 16)."""
        return self.code_bytes // 16
