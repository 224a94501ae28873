"""Read NVIDIA machine code with the tools that Triton carries: ptxas, cuobjdump and nvdisasm."""

import hashlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from triton import knobs
from triton.backends.nvidia.compiler import get_ptxas

from glm_portable.virtual.codegen.loops import Instruction, Listing, hot_range
from glm_portable.virtual.codegen.metrics import Disagreement, Loop, Metrics
from glm_portable.virtual.compiling import Artifact

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+((?:@!?\w+\s+)?([A-Z][\w.]*).*?)\s*;")
_BRANCH = re.compile(r"`\((\.L_x_\d+)\)")
_MATRIX = re.compile(r"^(HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA|DMMA|UTC[A-Z]*MMA)\b")
_LOAD = re.compile(r"^(?:LDG|LDGSTS)\.")
# Not arithmetic: memory, synchronisation, control flow, and the scalar (uniform) datapath.
_OTHER_UNIT = re.compile(
    r"^(LD|ST|ATOM|RED|LDSM|STSM|UTMA|UBLKCP|DEPBAR|SYNCS|BAR|WARPSYNC|WARPGROUP|MEMBAR|FENCE|"
    r"ERRBAR|CCTL|BRA|BSSY|BSYNC|BREAK|EXIT|RET|CALL|NOP|NANOSLEEP|ELECT|ACQBULK|U|R2UR|S2|CS2|"
    r"VOTE|BPT|PREEXIT|YIELD)"
)
# Operand types in PTX and in Triton's types, by the names used here.
_DIALECTS = {"e4m3": "fp8", "e5m2": "bf8", "bf16": "bf16", "f16": "f16", "tf32": "tf32",
             "s8": "i8", "f8E4M3FN": "fp8", "f8E5M2": "bf8", "f32": "tf32", "i8": "i8"}  # fmt: skip


def read(artifact: Artifact) -> Metrics:
    """Everything in Metrics. Raises Disagreement if ptxas and the cubin's own record differ."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(artifact.binary)
        registers, spills = _resources(artifact, cubin)
        listing = parse(_run(knobs.nvidia.nvdisasm.path, "-c", str(cubin)))
    body = [listing.instructions[i] for i in hot_range(listing, is_matrix)]
    chip = artifact.chip
    waves = chip.waves(registers)
    return Metrics(
        kernel=artifact.kernel,
        chip=chip,
        num_warps=artifact.num_warps,
        registers=registers,
        accumulators=0,
        scalars=0,
        spills=spills,
        scalar_spills=0,
        shared=artifact.shared,
        waves=waves,
        workgroups=chip.workgroups(waves, artifact.shared, artifact.num_warps),
        matrix=_matrix(listing.instructions),
        dialects=dialects(artifact),
        loop=_loop(body),
        loads=_loads(listing.instructions),
        async_copies=_async_copies(listing.instructions),
        code_bytes=16 * len(listing.instructions),  # every instruction has 128 bits
        instructions=digest(artifact.assembly),
    )


def _resources(artifact: Artifact, cubin: Path) -> tuple[int, int]:
    """Registers for each thread, and bytes of spill stores and loads."""
    said = _ptxas(artifact, cubin.with_suffix(".ptx"))
    registers = _number(r"Used (\d+) registers", said)
    stores, loads = (_number(rf"(\d+) bytes spill {kind}", said) for kind in ("stores", "loads"))
    record = _run(knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin))
    if registers != (recorded := _number(r"REG:(\d+)", record)):
        raise Disagreement(
            f"{artifact.kernel}: ptxas says {registers} registers, the cubin {recorded}."
        )
    return registers, stores + loads


def _ptxas(artifact: Artifact, ptx: Path) -> str:
    """What ptxas -v says, called as Triton's own compiler stage calls it."""
    ptx.write_text(artifact.assembly)
    arch = re.search(r"^\.target\s+(\w+)", artifact.assembly, re.MULTILINE)
    if not arch:
        raise Disagreement(f"{artifact.kernel}: the PTX has no .target")
    fusion = () if artifact.fp_fusion else ("--fmad=false",)
    return _run(
        get_ptxas(artifact.chip.target.arch).path,
        "-lineinfo", "-v", "--regAllocOptLevel=2", *fusion, f"--gpu-name={arch[1]}",
        str(ptx), "-o", str(ptx.with_suffix(".o")),
    )  # fmt: skip


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    if not (found := re.search(pattern, text)):
        raise Disagreement(f"no {pattern!r} in: {text.strip()[:300]}")
    return int(found[1])


def parse(sass: str) -> Listing:
    """The instructions of nvdisasm -c."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            target = _BRANCH.search(match[2]) if match[3].startswith("BRA") else None
            instructions.append(Instruction(match[3], match[2], target[1] if target else None))
    return Listing(instructions, labels)


def is_matrix(opcode: str) -> bool:
    return bool(_MATRIX.match(opcode))


def dialects(artifact: Artifact) -> frozenset[str]:
    """The types that the matrix instructions multiply.

    PTX names them in mma and wgmma. tcgen05.mma hides them in a descriptor, so there they are
    read off Triton's own operation.
    """
    pairs = re.findall(
        r"\b(?:wgmma\.mma_async|mma)\.sync\.aligned\.m\w+?\.(?:row\.col\.)?f32\.(\w+)\.(\w+)",
        artifact.assembly,
    )
    if "tcgen05.mma" in artifact.assembly:
        operand = r"!ttg\.memdesc<[\dx]*x(\w+),[^>]*>"
        for line in artifact.ttgir.splitlines():
            if "ttng.tc_gen5_mma" in line:
                pairs.append(tuple(re.findall(operand, line)[:2]))
    return frozenset(_DIALECTS[kind] for pair in pairs for kind in pair)


def _matrix(instructions: Iterable[Instruction]) -> Mapping[str, int]:
    return Counter(i.opcode for i in instructions if is_matrix(i.opcode))


def _loop(body: Sequence[Instruction]) -> Loop:
    opcodes = [i.opcode for i in body]
    return Loop(
        instructions=len(body),
        matrix=_matrix(body),
        matrix_cycles=0,
        valu=sum(not is_matrix(op) and not _OTHER_UNIT.match(op) for op in opcodes),
        shared=sum(bool(re.match(r"(LDS|STS|LDSM|STSM)\b", op)) for op in opcodes),
        loads=_loads(body),
        async_copies=_async_copies(body),
        barriers=sum(op.startswith("BAR.") for op in opcodes),
        full_waits=sum(i.opcode.startswith("DEPBAR") and "SB0, 0x0" in i.text for i in body),
    )


def _loads(instructions: Iterable[Instruction]) -> Mapping[int, int]:
    return Counter(_width(i.opcode) for i in instructions if _LOAD.match(i.opcode))


def _width(opcode: str) -> int:
    """Bytes for each lane: LDG.E.128 has 16, LDG.E 4, LDG.E.U8 1."""
    modifiers = opcode.split(".")
    for width, names in {16: ("128",), 8: ("64",), 2: ("U16", "S16"), 1: ("U8", "S8")}.items():
        if any(name in modifiers for name in names):
            return width
    return 4


def _async_copies(instructions: Iterable[Instruction]) -> int:
    return sum(i.opcode.startswith(("LDGSTS", "UTMALDG")) for i in instructions)


def digest(ptx: str) -> str:
    """SHA-256 of the PTX's instructions; its debug sections hold paths."""
    lines = (line.split("//")[0].strip() for line in ptx.split(".section")[0].splitlines())
    kept = [line for line in lines if line and not line.startswith((".loc", ".file", "$L__tmp"))]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()
