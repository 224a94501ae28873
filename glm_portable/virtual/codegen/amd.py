"""Read AMD assembly: registers from its metadata, and the instructions themselves."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from glm_portable.virtual.codegen import hsaco
from glm_portable.virtual.codegen.loops import Instruction, Listing, hot_range
from glm_portable.virtual.codegen.metrics import Disagreement, Loop, Metrics
from glm_portable.virtual.compiling import Artifact

RECORDED = (
    "vgpr_count", "agpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count",
    "private_segment_fixed_size", "group_segment_fixed_size", "max_flat_workgroup_size",
    "wavefront_size", "kernarg_segment_size",
)  # fmt: skip

# Cycles that one SIMD's matrix unit is busy: 4 for each pass of the CDNA3 and CDNA4 ISA documents.
MATRIX_CYCLES = {
    "32x32x2_f32": 64, "16x16x4_f32": 32, "32x32x4_xf32": 64, "16x16x8_xf32": 32,
    "32x32x8_f16": 32, "16x16x16_f16": 16, "32x32x8_bf16": 32, "16x16x16_bf16": 16,
    "32x32x16_f16": 32, "16x16x32_f16": 16, "32x32x16_bf16": 32, "16x16x32_bf16": 16,
    "32x32x16_fp8_fp8": 32, "16x16x32_fp8_fp8": 16,
    "32x32x64_f8f6f4": 64, "16x16x128_f8f6f4": 32,
}  # fmt: skip

_LABEL = re.compile(r"^\.?(LBB\d+_\d+):")
_INSTRUCTION = re.compile(r"^(v_|s_|ds_|global_|buffer_|scratch_|flat_)")
_LOAD = re.compile(r"^(global|buffer|flat)_load_(?:lds_)?(?:format_)?(\w+?)(?:_d16(?:_hi)?)?$")
_WIDTHS = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "ushort": 2, "sshort": 2,
           "ubyte": 1, "sbyte": 1, "short": 2}  # fmt: skip
# cbsz and blgp of the f8f6f4 instructions: the types of A and B (CDNA4 ISA).
_F8F6F4 = {0: "fp8", 1: "bf8", 2: "fp6", 3: "bf6", 4: "fp4"}


def read(artifact: Artifact) -> Metrics:
    """Everything in Metrics. Raises Disagreement if assembly and code object differ."""
    record = metadata(artifact)
    listing = parse(artifact.assembly)
    body = [listing.instructions[i] for i in hot_range(listing, is_matrix)]
    chip = artifact.chip
    waves = chip.waves(record["vgpr_count"], record["sgpr_count"])
    return Metrics(
        kernel=artifact.kernel,
        chip=chip,
        num_warps=artifact.num_warps,
        registers=record["vgpr_count"],
        accumulators=record["agpr_count"],
        scalars=record["sgpr_count"],
        spills=record["vgpr_spill_count"],
        scalar_spills=record["sgpr_spill_count"],
        shared=artifact.shared,
        waves=waves,
        workgroups=chip.workgroups(waves, artifact.shared, artifact.num_warps),
        matrix=_matrix(listing.instructions),
        dialects=dialects(listing.instructions),
        loop=_loop(body),
        loads=_loads(listing.instructions),
        async_copies=_async_copies(listing.instructions),
        code_bytes=_comment(artifact.assembly, "codeLenInByte ="),
        instructions=digest(listing.instructions),
    )


def metadata(artifact: Artifact) -> dict[str, int]:
    """The numbers that the assembly's YAML and the code object's note both hold.

    Raises Disagreement unless they are the same, and made for the chip that was asked for.
    """
    note = hsaco.kernel_record(artifact.binary)
    noted = {name: int(note[f".{name}"]) for name in RECORDED}
    written = {name: _last(rf"^\s+-?\s*\.{name}:\s+(\d+)", artifact.assembly) for name in RECORDED}
    if noted != written:
        differ = [f"{n} {written[n]} and {noted[n]}" for n in RECORDED if noted[n] != written[n]]
        raise Disagreement(
            f"{artifact.kernel}: the assembly and the code object say {'; '.join(differ)}."
        )
    machine = hsaco.machine(artifact.binary)
    if machine != artifact.chip.elf_machine:
        raise Disagreement(
            f"{artifact.kernel}: the code object is for machine 0x{machine:x}, not "
            f"{artifact.chip.name} (0x{artifact.chip.elf_machine:x})."
        )
    return noted


def occupancy(assembly: str) -> int:
    """Waves for each SIMD as the compiler counts them, which does not see the LDS."""
    return _comment(assembly, "Occupancy:")


def _comment(assembly: str, name: str) -> int:
    return _last(rf"^; {re.escape(name)}\s+(\d+)", assembly)


def _last(pattern: str, text: str) -> int:
    """Of several tables the last is the whole kernel's."""
    found = re.findall(pattern, text, re.MULTILINE)
    if not found:
        raise Disagreement(f"the assembly has no line like {pattern!r}: another compiler's?")
    return int(found[-1])


def parse(assembly: str) -> Listing:
    """The instructions of the kernel, without comments and directives."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        text = line.split(";")[0].strip()
        if text.startswith(".section") and ".AMDGPU" in text:
            break
        if label := _LABEL.match(text):
            labels[label[1]] = len(instructions)
        elif _INSTRUCTION.match(text):
            opcode = text.split()[0]
            branch = opcode.startswith(("s_branch", "s_cbranch"))
            target = text.split()[-1].lstrip(".") if branch else None
            instructions.append(Instruction(opcode, text, target))
    return Listing(instructions, labels)


def is_matrix(opcode: str) -> bool:
    return opcode.startswith(("v_mfma", "v_smfmac"))


def dialects(instructions: Iterable[Instruction]) -> frozenset[str]:
    """The types that the matrix instructions multiply; two where A and B differ."""
    found: set[str] = set()
    for opcode, text, _ in instructions:
        if is_matrix(opcode):
            kinds = opcode.removesuffix("_e64").removesuffix("_1k").split("x")[-1].split("_")[1:]
            found |= _f8f6f4(text) if kinds == ["f8f6f4"] else set(kinds)
    return frozenset(found)


def _f8f6f4(text: str) -> set[str]:
    codes = [re.search(rf"\b{field}:(\d)", text) for field in ("cbsz", "blgp")]
    return {_F8F6F4[int(code[1]) if code else 0] for code in codes}


def _matrix(instructions: Iterable[Instruction]) -> Mapping[str, int]:
    return Counter(
        i.opcode.removeprefix("v_mfma_f32_") for i in instructions if is_matrix(i.opcode)
    )


def _loop(body: Sequence[Instruction]) -> Loop:
    matrix = _matrix(body)
    opcodes = Counter(i.opcode for i in body)
    return Loop(
        instructions=len(body),
        matrix=matrix,
        matrix_cycles=sum(_cycles(name) * count for name, count in matrix.items()),
        valu=sum(n for op, n in opcodes.items() if op.startswith("v_") and not is_matrix(op)),
        shared=sum(n for op, n in opcodes.items() if op.startswith("ds_")),
        loads=_loads(body),
        async_copies=_async_copies(body),
        barriers=opcodes["s_barrier"],
        full_waits=sum(i.opcode == "s_waitcnt" and "vmcnt(0)" in i.text for i in body),
    )


def _cycles(name: str) -> int:
    if (cycles := MATRIX_CYCLES.get(name.removesuffix("_1k"))) is None:
        raise KeyError(f"the cycles of the matrix instruction {name} are not known")
    return cycles


def _loads(instructions: Iterable[Instruction]) -> Mapping[int, int]:
    widths: Counter[int] = Counter()
    for instruction in instructions:
        if match := _LOAD.match(instruction.opcode):
            widths[_WIDTHS[match[2]]] += 1
    return widths


def _async_copies(instructions: Iterable[Instruction]) -> int:
    return sum(
        bool(_LOAD.match(i.opcode)) and ("_lds_" in i.opcode or i.text.endswith(" lds"))
        for i in instructions
    )


def digest(instructions: Iterable[Instruction]) -> str:
    """SHA-256 of the instruction stream."""
    return hashlib.sha256("\n".join(i.text for i in instructions).encode()).hexdigest()
