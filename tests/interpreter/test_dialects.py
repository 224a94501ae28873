"""FP8 activations of the two dialects, where one process has both chips: in the interpreter."""

import torch

from glm_portable.backends.rocm import virtual
from glm_portable.verify.cases import CASES
from glm_portable.virtual import interpreter

FNUZ, OCP = (virtual(arch, interpreter.launch) for arch in ("gfx942", "gfx950"))


def test_both_dialects_round_activations_to_the_same_codes() -> None:
    case = next(c for c in CASES if str(c) == "experts: fp8, dynamic activations")
    fnuz, ocp = (case.run(ops, torch.bfloat16)["y"] for ops in (FNUZ, OCP))
    assert torch.equal(fnuz, ocp)
