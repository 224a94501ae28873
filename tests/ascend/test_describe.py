"""What the Ascend backend tells of its machine, from the files of driver and toolkit."""

from pathlib import Path

import pytest
import torch

from glm_portable.backends import ascend
from glm_portable.backends._host import processor


def test_chip_driver_and_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "driver").write_text("Version=24.1.rc3\nascendhal_version=7.35\n")
    (tmp_path / "cann").write_text("# version\ntoolkit_running_version=[8.3.RC1:CANN-8.3]\n")
    monkeypatch.setattr(ascend, "DRIVER", tmp_path / "driver")
    monkeypatch.setattr(ascend, "CANN", tmp_path / "cann")
    machine = ascend.virtual("Ascend910_9391", None, torch.device("cpu"))
    assert machine.describe()["chip"] == f"Ascend910_9391 (A3), simulated on {processor()}"
    machine.device = torch.device("meta")  # any that is not the host's
    said = machine.describe()
    assert said["chip"] == "Ascend910_9391 (A3)"
    assert said["driver"] == "24.1.rc3" and said["CANN"] == "8.3.RC1:CANN-8.3"
