"""The pocket model through simulated machine code, layer by layer; every chip and format in full:
glm-portable verify model --virtual CHIP --format FORMAT."""

import pytest

from glm_portable import pocket
from glm_portable.verify.model.checks import runners
from glm_portable.verify.model.layers import compare
from glm_portable.verify.subject import Subject
from glm_portable.virtual import connect

KERNELS = {
    "align": {"count", "place"},
    "route": {"gate", "choose"},
    "experts": {"grouped_gemm", "combine", "silu_mul"},
    "attention": {"rope_store", "attend"},
    "norm": {"rms_norm"},
}


@pytest.mark.parametrize(("chip", "kind"), [("gfx942", "fp8"), ("gfx950", "bf16")])
def test_the_pocket_model(chip: str, kind: str) -> None:
    subject = Subject("glm-pocket", pocket.FOLDER, kind)
    ours, plain, exact = runners(subject, connect("rocm", chip))
    parts = list(compare(ours, plain, exact, subject.prompt(5), decode=1, whole=False))
    assert [finding for part in parts for finding in part.findings] == []
    assert len(parts) == 7
    seen = ours.watched.kernels
    assert set().union(*KERNELS.values()) <= seen.keys()
    assert seen["attend"] == 2 * 5  # two steps through four layers and the MTP layer
    assert ours.watched.products["_scaled_mm"] == (2 * 5 * 4 if kind == "fp8" else 0)
