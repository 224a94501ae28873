"""Hand-written programs for the simulator, as little as a test needs."""

from typing import Any

from glm_portable.virtual.cdna import Compiled, Statistics, execute

POINTERS = "s[4:5]", "s[6:7]", "s[8:9]", "s[10:11]"

_FRAME = """
kernel:
{prologue}
{body}
  s_endpgm
  .amdhsa_user_sgpr_kernarg_segment_ptr 1
  .amdhsa_user_sgpr_count 2
  .amdhsa_system_sgpr_workgroup_id_x 1
  .amdhsa_next_free_vgpr 128
  .amdhsa_accum_offset 64
{directives}
	.amdgpu_metadata
---
amdhsa.kernels:
  - .args:
{arguments}
    .kernarg_segment_size: {size}
...
"""


def program(body: str, pointers: int = 0, directives: str = "") -> str:
    """A kernel around `body`: v0 is the work-item, s2 the workgroup, and the arguments, loaded
    before it begins, are in s[4:5], s[6:7], ... With v1 as 4 * lane."""
    loads = [f"  s_load_dwordx2 {POINTERS[i]}, s[0:1], {8 * i}" for i in range(pointers)]
    arguments = [f"      - {{.offset: {8 * i}, .size: 8}}" for i in range(pointers)]
    return _FRAME.format(
        prologue="\n".join([*loads, "  s_waitcnt lgkmcnt(0)", "  v_lshlrev_b32 v1, 2, v0"]),
        body="\n".join("  " * (not line.endswith(":")) + line for line in _lines(body)),
        directives=directives,
        arguments="\n".join(arguments) or "      []",
        size=8 * pointers,
    )


def _lines(body: str) -> list[str]:
    return [line.strip() for line in body.strip().splitlines()]


def run(
    body: str,
    *arguments: Any,
    arch: str = "gfx942",
    waves: int = 1,
    lds: int = 0,
    grid: tuple[int, ...] = (1,),
    directives: str = "",
    seed: int = 0,
    max_instructions: int = 100_000,
) -> Statistics:
    """Execute `program(body)` on CPU tensors or 64-bit integers."""
    text = program(body, len(arguments), directives)
    compiled = Compiled("kernel", arch, text, lds, waves, arguments, {})
    return execute(compiled, grid, seed=seed, max_instructions=max_instructions)
