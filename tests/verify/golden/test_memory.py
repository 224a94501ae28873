"""The reference of a checkpoint that is larger than the memory it is given, in a process alone."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from glm_portable.verify.generated import CONFIGS, random_tensors, write_files

WIDE = CONFIGS["air-like"] | {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "n_routed_experts": 48,
    "moe_intermediate_size": 256,
    "num_nextn_predict_layers": 1,
}
MEASURE = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from glm_portable.verify.golden.build import in_folder, in_memory
from glm_portable.verify.golden.plan import bytes_needed, resident_bytes
from glm_portable.verify.subject import Subject
small, large, out = map(Path, sys.argv[1:])
warm = Subject("small", small)
in_memory(warm, [warm.prompt(9)])  # threads, kernels and allocators of torch
subject = Subject("large", large)
prompts = [subject.prompt(33, s) for s in range(2)]
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident_bytes()
in_folder(subject, prompts, torch.float64, out)
status = Path("/proc/self/status").read_text().split()
peak = int(status[status.index("VmHWM:") + 1]) * 1024
needed = bytes_needed(subject.config, [32, 32], torch.float64, False)
print(json.dumps({"grown": peak - before, "needed": needed}))
"""


def test_memory_is_within_the_plan_and_below_the_checkpoint(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    write_files(small, CONFIGS["air-like"], random_tensors(CONFIGS["air-like"]))
    write_files(large, WIDE, random_tensors(WIDE), shards=3)
    size = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    arguments = [str(path) for path in (small, large, tmp_path / "golden")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    assert torch.float64.itemsize // torch.bfloat16.itemsize == 4
    # As a whole it would take four times what it has on disk.
    assert measured["grown"] < measured["needed"] < size, (measured, size)
    assert measured["grown"] < size / 2, (measured, size)
