"""`doctor`: on a made-up machine where nothing is missing all is fine; then one thing is taken."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from glm_portable import doctor
from glm_portable.cli import main
from glm_portable.errors import UsageError
from glm_portable.host import Finding, Verdict, ask_python
from tests.doctor_hosts import CANN, FLAGS, WHOLE, GiB, Made

Take = Callable[[Made], object]
ASCEND = "/usr/local/Ascend"
CHECK, MISSING = Verdict.CHECK, Verdict.MISSING


def examine(made: Made, backend: str) -> list[Finding]:
    return doctor.examine(made.host(), backend)[backend]


def bad(made: Made, backend: str) -> dict[str, tuple[Verdict, str]]:
    """What is not fine: item -> (verdict, what was found and what to do)."""
    return {
        f.item: (f.verdict, f"{f.found}: {f.advice}")
        for f in examine(made, backend)
        if f.verdict is not Verdict.FINE
    }


@pytest.mark.parametrize("backend", WHOLE)
def test_nothing_is_missing(backend: str, tmp_path: Path) -> None:
    found = doctor.examine(WHOLE[backend](tmp_path).host())
    assert set(found) == {"cpu", backend}  # each has signs of its own alone
    assert not [f for f in found[backend] if f.advice]
    assert doctor.exit_code(found) == 0
    assert len({f.item for f in found[backend]}) == len(found[backend])


def without_gpus(made: Made) -> None:
    for i in (0, 1):
        made.remove(f"/dev/nvidia{i}")


def cann(version: str) -> Take:
    """Another CANN than torch_npu was released with."""

    def take(made: Made) -> None:
        for part in ("toolkit", "ops"):
            info = f"{CANN}/aarch64-linux/ascend_{part}_install.info"
            made.write(info, f"version={version}\n")

    return take


TAKEN: list[tuple[str, str, Take, str, Verdict, str]] = [
    ("cpu", "python", lambda m: setattr(m, "python_version", (3, 10)), "Python", MISSING, "3.11"),
    ("cpu", "torch", lambda m: m.versions.pop("torch"), "torch", MISSING, "pip install torch"),
    (
        "cpu", "broken torch", lambda m: setattr(m, "error", "ImportError: libx.so: gone"),
        "torch", MISSING, "libx.so",
    ),
    (
        "cpu", "vectors", lambda m: m.write("/proc/cpuinfo", f"flags : {FLAGS[:-6]}\n"),
        "BF16 kernel", CHECK, "no avx512_bf16",
    ),
    ("cpu", "compiler", lambda m: m.tools.discard("c++"), "C++ compiler", CHECK, "install g"),
    ("cpu", "memory", lambda m: m.cpu.update(free=GiB), "free memory", CHECK, "1.0 GiB"),
    (
        "cuda", "driver", lambda m: m.remove("/proc/driver/nvidia/version"),
        "driver", MISSING, "--gpus all",
    ),
    (
        "cuda", "old driver",
        lambda m: m.write("/proc/driver/nvidia/version", "Kernel Module  570.10.01  Release\n"),
        "driver", MISSING, "570.10.01: install driver 580",
    ),
    (
        "cuda", "nodes", without_gpus,
        "/dev/nvidia*", MISSING, "none",
    ),
    ("cuda", "ctl", lambda m: m.remove("/dev/nvidiactl"), "/dev/nvidiactl", MISSING, "not there"),
    ("cuda", "uvm", lambda m: m.remove("/dev/nvidia-uvm"), "/dev/nvidia-uvm", MISSING, "gpus"),
    (
        "cuda", "hidden", lambda m: m.environment.update(CUDA_VISIBLE_DEVICES=""),
        "CUDA_VISIBLE_DEVICES", MISSING, "unset it",
    ),
    (
        "cuda", "beyond", lambda m: m.environment.update(CUDA_VISIBLE_DEVICES="0,2"),
        "CUDA_VISIBLE_DEVICES", MISSING, "'2' is none",
    ),
    (
        "cuda", "cpu torch", lambda m: m.values.update(cuda=None),
        "torch for CUDA", MISSING, "built for the CPU: pip install torch from .*cu130",
    ),
    ("cuda", "triton", lambda m: m.versions.pop("triton"), "triton", MISSING, "not installed"),
    (
        "cuda", "old triton", lambda m: m.versions.update(triton="3.8.0"),
        "triton", MISSING, "3.8.0: pip install",
    ),
    ("cuda", "gcc", lambda m: m.tools.discard("gcc"), "C compiler", MISSING, "install gcc"),
    (
        "cuda", "no device", lambda m: m.values.update(seen=[]),
        "devices in torch", MISSING, "nvidia-smi",
    ),
    (
        "cuda", "old chip", lambda m: m.values["seen"][1].update(arch="sm_80"),
        "device 1", MISSING, "sm_80.*Hopper",
    ),
    (
        "cuda", "full", lambda m: m.values["seen"][0].update(free=GiB),
        "device 0", CHECK, "1.0 GiB of 80.0 GiB free",
    ),
    (
        "cuda", "nccl", lambda m: m.values.update(collectives=False),
        "NCCL", CHECK, "several devices",
    ),
    ("rocm", "driver", lambda m: m.remove("/sys/module/amdgpu"), "driver", MISSING, "amdgpu"),
    ("rocm", "kfd", lambda m: m.remove("/dev/kfd"), "/dev/kfd", MISSING, "--device /dev/kfd"),
    ("rocm", "groups", lambda m: m.locked.add("/dev/kfd"), "/dev/kfd", MISSING, "render"),
    (
        "rocm", "render", lambda m: m.remove("/dev/dri"),
        "/dev/dri/renderD*", MISSING, "load amdgpu",
    ),
    (
        "rocm", "beyond", lambda m: m.environment.update(HIP_VISIBLE_DEVICES="5"),
        "HIP_VISIBLE_DEVICES", MISSING, "0 to 1: '5'",
    ),
    (
        "rocm", "numa", lambda m: m.write("/proc/sys/kernel/numa_balancing", "1\n"),
        "NUMA balancing", CHECK, "sysctl",
    ),
    (
        "rocm", "cuda torch", lambda m: m.values.update(hip=None, cuda="13.0"),
        "torch for ROCm", MISSING, "built for another GPU",
    ),
    ("rocm", "triton", lambda m: m.versions.pop("triton"), "triton", MISSING, "not installed"),
    (
        "rocm", "chip", lambda m: m.values["seen"][0].update(arch="gfx90a"),
        "device 0", MISSING, "gfx90a.*MI300",
    ),
    ("rocm", "none", lambda m: m.values.update(seen=[]), "devices in torch", MISSING, "rocm-smi"),
    ("rocm", "rccl", lambda m: m.values.update(collectives=False), "RCCL", CHECK, "several"),
    (
        "ascend", "driver", lambda m: m.remove(f"{ASCEND}/driver/version.info"),
        "driver", MISSING, "in a container mount /usr/local/Ascend/driver",
    ),
    (
        "ascend", "hal", lambda m: m.remove(f"{ASCEND}/driver/lib64"),
        "driver libraries", MISSING, "libascend_hal.so",
    ),
    ("ascend", "smi", lambda m: m.remove("/usr/local/bin/npu-smi"), "npu-smi", CHECK, "mount"),
    ("ascend", "dcmi", lambda m: m.remove("/usr/local/dcmi"), "npu-smi", CHECK, "/usr/local/dcmi"),
    *[
        ("ascend", node, lambda m, node=node: m.remove(f"/dev/{node}"), f"/dev/{node}", MISSING,
         f"--device /dev/{node}")
        for node in ("davinci_manager", "devmm_svm", "hisi_hdc")
    ],
    *[
        ("ascend", f"visible {value!r}",
         lambda m, value=value: m.environment.update(ASCEND_RT_VISIBLE_DEVICES=value),
         "ASCEND_RT_VISIBLE_DEVICES", MISSING, words)
        for value, words in (
            ("", "'' and all behind it"), ("0,2", "'2' and all"), ("0, 1", "' 1' and all"),
            ("1,0", "rising order"), ("0,0", "rising order"),
        )
    ],
    (
        "ascend", "no toolkit file",
        lambda m: m.remove(f"{CANN}/aarch64-linux/ascend_toolkit_install.info"),
        "CANN", MISSING, "Ascend-cann-toolkit",
    ),
    (
        "ascend", "old CANN",
        cann("8.3.RC1"),
        "CANN", MISSING, "8.3.RC1 .*8.5 or newer",
    ),
    (
        "ascend", "other CANN",
        cann("9.1.0"),
        "CANN", CHECK, "9.1.0 .*released with 9.2.0",
    ),
    (
        "ascend", "ops", lambda m: m.remove(f"{CANN}/aarch64-linux/ascend_ops_install.info"),
        "CANN operators", MISSING, "Ascend-cann-A3-ops",
    ),
    (
        "ascend", "other ops",
        lambda m: m.write(f"{CANN}/aarch64-linux/ascend_ops_install.info", "version=9.0.0\n"),
        "CANN operators", MISSING, "9.0.0: install the operators of CANN 9.2.0",
    ),
    *[
        ("ascend", name, lambda m, name=name: m.environment.pop(name), name, MISSING, "set_env.sh")
        for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH")
    ],
    (
        "ascend", "wrong home",
        lambda m: m.environment.update(ASCEND_HOME_PATH="/usr/local/Ascend/cann-8.5.0"),
        "ASCEND_HOME_PATH", MISSING, "cann-8.5.0, which is not there",
    ),
    *[
        ("ascend", name, lambda m, name=name: m.remove(f"{CANN}/lib64/{name}"), name, MISSING,
         "not in LD_LIBRARY_PATH")
        for name in (
            "libascendcl.so", "libacl_op_compiler.so", "libge_runner.so", "libgraph.so",
            "libacl_tdt_channel.so",
        )
    ],
    (
        "ascend", "task queue", lambda m: m.environment.update(TASK_QUEUE_ENABLE="0"),
        "TASK_QUEUE_ENABLE", CHECK, "set it to 1",
    ),
    (
        "ascend", "autoload", lambda m: m.environment.update(TORCH_DEVICE_BACKEND_AUTOLOAD="0"),
        "TORCH_DEVICE_BACKEND_AUTOLOAD", CHECK, "--backend auto does not see",
    ),
    (
        "ascend", "cuda torch", lambda m: m.versions.update(torch="2.13.0+cu130"),
        "torch", MISSING, r"torch==2.13.0\+cpu",
    ),
    (
        "ascend", "mismatch", lambda m: m.versions.update(torch="2.14.1+cpu"),
        "torch_npu", MISSING, "2.13.0 beside torch 2.14.1: pip install torch==2.13.0",
    ),
    (
        "ascend", "no torch_npu", lambda m: m.versions.pop("torch-npu"),
        "torch_npu", MISSING, "pip install torch-npu==2.13.0",
    ),
    ("ascend", "no torch", lambda m: m.versions.pop("torch"), "torch", MISSING, "not installed"),
    (
        "ascend", "hccl", lambda m: m.remove(f"{CANN}/lib64/libhccl.so"),
        "HCCL", MISSING, "no libhccl.so",
    ),
    (
        "ascend", "hccn.conf", lambda m: m.remove("/etc/hccn.conf"),
        "/etc/hccn.conf", CHECK, "hccn_tool",
    ),
    (
        "ascend", "memory", lambda m: m.values["memory"][1].__setitem__(0, 3 * GiB),
        "memory of npu:1", CHECK, "3.0 GiB of 64.0 GiB free",
    ),
    (
        "ascend", "backend",
        lambda m: setattr(m, "error", "glm_portable.errors.UsageError: chip 'Ascend310' no"),
        "backend", MISSING, "Ascend310",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "take", "item", "verdict", "words"),
    [(b, *rest) for b, _, *rest in TAKEN],
    ids=[f"{b} {name}" for b, name, *_ in TAKEN],
)
def test_what_is_taken_away_is_named_alone(
    backend: str, take: Take, item: str, verdict: Verdict, words: str, tmp_path: Path
) -> None:
    made = WHOLE[backend](tmp_path)
    take(made)
    found = bad(made, backend)
    assert list(found) == [item]
    assert found[item][0] is verdict
    assert re.search(words, found[item][1]), found[item]
    whole = doctor.examine(made.host(), backend)
    assert doctor.exit_code(whole) == (3 if verdict is MISSING else 0)


def test_without_devices_everything_that_hangs_on_them_is_named(tmp_path: Path) -> None:
    made = WHOLE["ascend"](tmp_path)
    for i in (0, 1):
        made.remove(f"/dev/davinci{i}")
    made.error = "glm_portable.errors.UsageError: torch_npu sees no NPU"
    assert set(bad(made, "ascend")) == {"/dev/davinci*", "backend"}


def test_without_any_cann(tmp_path: Path) -> None:
    made = WHOLE["ascend"](tmp_path)
    made.remove(CANN)
    made.environment.clear()
    found = bad(made, "ascend")
    assert found["CANN"][1].startswith("no toolkit") and "HCCL" in found
    assert {"ASCEND_HOME_PATH", "libascendcl.so", "libgraph.so"} <= set(found)


def test_cann_is_found_without_its_environment(tmp_path: Path) -> None:
    made = WHOLE["ascend"](tmp_path)
    info = "/usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_{}_install.info"
    for part in ("toolkit", "ops"):
        made.write(info.format(part), "version=9.2.0\n")
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        del made.environment[name]
    found = {f.item: f.found for f in examine(made, "ascend")}
    assert found["CANN"] == "9.2.0 in /usr/local/Ascend/ascend-toolkit/latest"


@pytest.mark.parametrize(
    ("generation", "words"), [("A2", "none in this chip"), ("A5", "MXFP8 alone")]
)
def test_the_fp8_of_an_npu(generation: str, words: str, tmp_path: Path) -> None:
    made = WHOLE["ascend"](tmp_path)
    made.values["generation"] = generation
    found = {f.item: f.found for f in examine(made, "ascend")}
    assert words in found["FP8"] and "w8a8" in found["FP8"]


def test_the_dialects_of_gpus(tmp_path: Path) -> None:
    made = WHOLE["rocm"](tmp_path)
    made.values["seen"][1]["arch"] = "gfx950"
    found = {f.item: f.found for f in examine(made, "rocm")}
    assert "FNUZ e4m3" in found["device 0"] and "OCP e4m3" in found["device 1"]


def test_a_backend_without_a_sign_is_looked_at_when_asked_for(tmp_path: Path) -> None:
    made = WHOLE["cpu"](tmp_path)
    assert set(doctor.examine(made.host())) == {"cpu"}
    assert MISSING in {f.verdict for f in examine(made, "rocm")}
    with pytest.raises(UsageError, match="backend 'tpu' is not one of auto, ascend, cpu, cuda"):
        doctor.examine(made.host(), "tpu")


def test_the_table_shows_every_item_and_what_to_do(tmp_path: Path) -> None:
    made = WHOLE["ascend"](tmp_path)
    made.remove("/dev/hisi_hdc")
    found = doctor.examine(made.host(), "ascend")
    console = Console(record=True, width=200, file=open(os.devnull, "w"))
    doctor.print_tables(found, console)
    text = console.export_text()
    assert all(f.item in text and f.found in text for f in found["ascend"])
    assert "ascend: 1 of 25 items are missing." in text and "cpu: nothing is missing." in text
    assert "No sign of cuda, rocm here" in text
    parsed = json.loads(doctor.as_json(found))
    assert parsed["exit_code"] == 3 and {b["verdict"] for b in parsed["backends"]["ascend"]} == {
        "fine", "missing",
    }  # fmt: skip


def test_this_machine() -> None:
    done = CliRunner().invoke(main, ["doctor", "--backend", "cpu", "--json"])
    items = {i["item"]: i for i in json.loads(done.output)["backends"]["cpu"]}
    assert done.exit_code == 0 and items["torch"]["verdict"] == "fine"
    assert items["Python"]["found"] == ".".join(map(str, sys.version_info[:2]))


def test_the_first_error_of_a_traceback_is_what_is_told() -> None:
    code = (
        "try:\n    raise ImportError('libhccl.so: gone')\n"
        "except ImportError as e:\n    raise RuntimeError('no backend') from e"
    )
    assert ask_python(code).error == "ImportError: libhccl.so: gone"
    assert ask_python("import sys; sys.exit(7)").error == "it ended with code 7"


def test_it_runs_where_torch_does_not_import(tmp_path: Path) -> None:
    """The import of torch is what fails where torch_npu is installed and CANN is not there."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libhccl.so: gone')\n")
    code = "from glm_portable.cli import main; main(['doctor', '--json'])"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 3, done.stderr
    found = {i["item"]: i for i in json.loads(done.stdout)["backends"]["cpu"]}
    assert found["torch"]["found"] == "does not import: ImportError: libhccl.so: gone"
