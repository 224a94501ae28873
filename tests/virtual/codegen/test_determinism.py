"""A kernel gives the same instructions wherever it lies and whatever was compiled before."""

import importlib.util
from pathlib import Path

import pytest
import torch

from glm_portable.virtual.codegen import CHIPS, inspect
from tests.virtual.codegen import small_kernels
from tests.virtual.codegen.small_kernels import matmul_args


@pytest.mark.parametrize("target", CHIPS)
def test_fresh_caches_and_other_paths_give_the_same_instructions(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        source = Path(small_kernels.__file__).read_text(encoding="utf-8")
        blank = "\n" * len(name)  # line numbers may not matter either
        (folder / "kernels.py").write_text(blank + source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, folder / "kernels.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
        metrics = inspect(module.matmul, matmul_args(torch.bfloat16, (64, 64, 64)), target)
        assert any((folder / "cache").rglob("*"))
        digests.add(metrics.instructions)
    assert len(digests) == 1
    other = inspect(module.matmul, matmul_args(torch.bfloat16, (64, 32, 64)), target)
    assert other.instructions not in digests
