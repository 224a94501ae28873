"""The Dockerfiles: pinned, explained line by line in the docs, and in step with the lock files."""

import re
from pathlib import Path

import pytest

from glm_portable.backends._doctor import ascend
from glm_portable.backends._doctor._gpu import numbers
from glm_portable.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {"ascend": "ascend.md", "cuda": "containers.md", "rocm": "containers.md"}


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def joined(path: str) -> list[str]:
    """The instructions of a Dockerfile, each on one line."""
    lines = [x for x in text(path).splitlines() if x and not x.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def dockerfile(name: str) -> list[str]:
    return joined(f"docker/{name}.Dockerfile")


def arguments(name: str) -> dict[str, str]:
    pairs = (x.removeprefix("ARG ").partition("=") for x in dockerfile(name) if x[:4] == "ARG ")
    return {key: value for key, _, value in pairs}


def base(name: str) -> str:
    """The image that everything else is built upon."""
    (image,) = [x.removeprefix("FROM ") for x in dockerfile(name) if x.startswith("FROM ")]
    return re.sub(r"\$\{(\w+)\}", lambda m: arguments(name)[m[1]], image)


def section(name: str) -> str:
    """What the docs say of one image."""
    title = {"ascend": "Container", "cuda": "CUDA", "rocm": "ROCm"}[name]
    parts = re.split(r"^## ", text(f"docs/{PAGES[name]}"), flags=re.MULTILINE)
    (found,) = [part for part in parts if part.startswith(title)]
    return found


def table(name: str) -> str:
    return "\n".join(x for x in section(name).splitlines() if x.startswith("|"))


def run_line(name: str) -> str:
    found = re.search(r"docker run(?:.*\\\n)*.*", section(name))
    assert found
    return found[0].replace("\\\n", " ")


@pytest.mark.parametrize("name", PAGES)
def test_the_base_image_is_pinned_and_explained(name: str) -> None:
    image, _, tag = base(name).partition(":")
    assert re.search(r"\d+\.\d+\.\d+", tag) and "latest" not in tag
    assert f"`{image}:{tag}`" in table(name)
    assert f"docker/{name}.Dockerfile" in section(name)


@pytest.mark.parametrize("name", PAGES)
def test_every_argument_and_variable_has_a_reason(name: str) -> None:
    said = table(name)
    set_there = [x for x in dockerfile(name) if x.startswith("ENV ")]
    variables = re.findall(r"(\w+)=", " ".join(set_there))
    variables += re.findall(r"\b(TORCH_DEVICE_BACKEND_AUTOLOAD)=", " ".join(dockerfile(name)))
    assert variables
    given = [key for key in arguments(name) if key != "CUDA"]  # part of the tag, as it stands there
    for key in {*variables, *given}:
        assert f"`{key}`" in said, key


@pytest.mark.parametrize("name", PAGES)
def test_every_mount_device_and_option_of_the_run_line_has_a_reason(name: str) -> None:
    line, said = run_line(name), table(name)
    paths = re.findall(r"-v (/[^:\s]+):", line) + re.findall(r"--device (/dev/\w+)", line)
    options = re.findall(r"(--(?:network|shm-size|gpus|group-add|security-opt)\S*)", line)
    assert paths and options
    for path in paths:
        assert path in said or path == "/data/models", path
    for option in options:
        assert option in said, option


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_are_ones_of_this_program(name: str) -> None:
    (command,) = [x for x in dockerfile(name) if x.startswith("CMD ")]
    for words in (
        re.findall(r'"([^"]+)"', command),
        run_line(name).split("glm-portable serve")[1:],
    ):
        joined_words = " ".join(words)
        known = {o for p in main.commands["serve"].params for o in p.opts}
        assert set(re.findall(r"--[a-z-]+", joined_words)) <= known
        assert f"--backend {name}" in joined_words


def test_the_ascend_image_is_in_step_with_the_lock_file_and_doctor() -> None:
    lock = dict(re.findall(r"^([\w-]+)==(\S+)$", text("requirements-ascend.lock"), re.MULTILINE))
    instructions = " ".join(dockerfile("ascend"))
    assert "-r requirements-ascend.lock" in instructions
    assert "torch==" not in instructions and "torch-npu==" not in instructions  # one place only
    assert f"torch {lock['torch']} and torch-npu {lock['torch-npu']}" in table("ascend")
    cann, meant = arguments("ascend")["CANN"], ascend.CANN_OF[lock["torch-npu"]]
    assert ascend.OLDEST_CANN <= numbers(cann)[:2] <= numbers(meant)[:2]
    assert f"released with {meant}" in table("ascend")
    assert arguments("ascend")["CHIP"] == "a3" and "CHIP=910b" in section("ascend")


def test_the_ascend_run_line_hands_in_what_doctor_looks_for() -> None:
    line = run_line("ascend")
    for node in ascend.MANAGERS:
        assert f"--device /dev/{node}" in line
    assert "/dev/davinci$i" in line
    for path in ("driver/lib64", "driver/version.info"):
        assert f"-v {ascend.ASCEND}/{path}:{ascend.ASCEND}/{path}" in line
    for path in ("/usr/local/bin/npu-smi", "/usr/local/dcmi", "/etc/hccn.conf"):
        assert f"-v {path}:{path}" in line


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_the_gpu_images_have_the_locks_versions(name: str) -> None:
    instructions = " ".join(dockerfile(name))
    assert "requirements.lock" in instructions and "-r requirements-kernels.lock" in instructions
    assert "torch==2" not in instructions and "triton==" not in instructions


def test_the_build_leaves_out_what_is_ignored() -> None:
    assert {".git", ".venv*", "**/__pycache__"} <= set(text(".dockerignore").split())
