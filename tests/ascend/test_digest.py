"""Digests of weights in layouts that only matrix products read."""

from pathlib import Path

import torch

from glm_portable.backends.ascend.linear import Packed
from glm_portable.virtual import connect
from tests.random_checkpoint import small_config, write_checkpoint
from tests.test_digest import all_digests, changed, flip, model_of


def test_a_flipped_bit_of_a_weight_in_fractal_nz_is_seen(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config(), quantize="int8")
    model = model_of(tmp_path, connect("ascend", "Ascend910B1"), torch.bfloat16)
    then = all_digests(model)
    moe = model.layers[-1].moe
    assert moe is not None
    for w in (moe.down, model.layers[0].attention.qkv):
        assert isinstance(w.packed, Packed) and w.packed.scale is not None
        for x in (w.packed.parts[0].rows, w.packed.scale):  # type: ignore[attr-defined]  # its tiles
            flip(x)
            assert len(changed(model, then)) == 1
            flip(x)
    assert changed(model, then) == []
