"""An Ascend NPU that is not here: the real torch_npu on stand-in libraries and simulated operators.

| part | what |
|---|---|
| standins.py, cann.c | libraries that let torch_npu be imported without CANN |
| devices.py | npu:0, npu:1, ... whose memory is the host's |
| machine.py, semantics/ | what the operators compute and refuse, behind torch_npu's own schemas |
| layout.py | weights in FRACTAL_NZ, which only matrix products can read |
"""

import torch

from glm_portable.backends import ascend
from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu import standins
from glm_portable.virtual.npu.machine import Machine


def connect(soc: str) -> ascend.AscendOps:
    """The Ascend backend on a virtual chip, such as Ascend910_9391, with tensors on the host.

    Raises UsageError on a machine with CANN or an NPU, without torch_npu, or for another chip.
    """
    Chip.named(soc)
    standins.load(soc)
    return ascend.virtual(soc, Machine(soc).ops, torch.device("cpu"))
