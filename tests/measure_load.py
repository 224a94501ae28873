"""Load a checkpoint folder and print how much memory that took, as JSON, in bytes.

python -m tests.measure_load FOLDER DTYPE [QUANTIZATION]. A process of its own, as a peak cannot be
reset.
"""

import json
import sys
from pathlib import Path

import torch

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model


def memory(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process; see proc(5)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def main(folder: str, dtype: str, quantization: str | None = None) -> None:
    config, backend = ModelConfig.load(Path(folder)), ops.load("reference")
    torch.ones(64, 64).bfloat16().matmul(torch.ones(64, 64).bfloat16())  # libraries load lazily
    before = memory("VmRSS")
    weights = Checkpoint(
        Path(folder), config, dtype=getattr(torch, dtype), quantization=quantization
    )
    model = Model(config, backend, weights)
    after, peak = memory("VmRSS"), memory("VmHWM")
    assert model.embed.dtype == getattr(torch, dtype)
    print(json.dumps({"before": before, "after": after, "peak": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
