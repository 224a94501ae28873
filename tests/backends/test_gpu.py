"""What the GPU backends do before any kernel runs: dialects of FP8, and refusals."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glm_portable import ops
from glm_portable.backends import rocm
from glm_portable.backends._gpu import GpuOps, check_torch, to_dialect
from glm_portable.errors import UsageError
from glm_portable.kernels.launch import jit
from glm_portable.kernels.target import Target
from glm_portable.verify.cases.data import quantised

OCP, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
CODES = torch.arange(256, dtype=torch.int32).to(torch.uint8)


def test_conversion_to_fnuz_is_exact_for_every_code() -> None:
    numbers = CODES[(CODES & 0x7F) != 0x7F].view(OCP)
    data, scale = to_dialect(numbers, torch.tensor([0.37]), FNUZ)
    assert data.dtype == FNUZ
    assert torch.equal(
        data.double() * scale.double(), numbers.double() * torch.tensor([0.37]).double()
    )
    assert not data.view(torch.uint8).eq(0x80).any()  # FNUZ's NaN


@pytest.mark.parametrize("code", [0x7F, 0xFF])
@pytest.mark.parametrize("dialect", [OCP, FNUZ])
def test_nan_codes_are_refused(code: int, dialect: torch.dtype) -> None:
    data = torch.tensor([0, 1, code], dtype=torch.uint8).view(OCP)
    with pytest.raises(UsageError, match="NaN codes.*download it again"):
        to_dialect(data, torch.ones(1), dialect)


def test_ocp_stays_as_it_is() -> None:
    data, scale = torch.zeros(3).to(OCP), torch.ones(1)
    assert to_dialect(data, scale, OCP) == (data, scale)


@pytest.mark.parametrize(
    ("backend", "found", "message"),
    [
        (
            "rocm",
            {"rocm": None, "cuda": "12.8"},
            "built for ROCM, .* is built for CUDA; .* --backend cuda",
        ),
        (
            "cuda",
            {"cuda": None, "rocm": "7.0"},
            "built for CUDA, .* is built for ROCM; .* --backend rocm",
        ),
        ("rocm", {"rocm": None, "cuda": None}, "is built for the CPU alone; .* --backend cpu"),
    ],
)
def test_the_other_vendors_torch_is_refused_by_name(
    backend: str, found: dict[str, str | None], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_torch(backend, found, lambda: True)


def test_a_torch_without_a_device_is_refused() -> None:
    found: dict[str, str | None] = {"rocm": "7.0", "cuda": None}
    with pytest.raises(UsageError, match="'rocm': torch sees no GPU"):
        check_torch("rocm", found, lambda: False)
    check_torch("rocm", found, lambda: True)


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_loading_without_the_chip_is_a_usage_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(UsageError, match=f"backend '{name}' needs a PyTorch built for"):
        ops.load(name)


def test_the_virtual_chip_names_its_architecture() -> None:
    with pytest.raises(UsageError, match="architecture 'gfx90a'"):
        rocm.virtual("gfx90a", lambda *arguments, **rest: None)


def fake_rocm(monkeypatch: pytest.MonkeyPatch, arch: str, library: Any) -> list[str]:
    """A ROCm torch with one such GPU; returns the libraries that are asked for."""
    asked: list[str] = []

    def prefer(name: str) -> Any:
        asked.append(name)
        return library

    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    properties = SimpleNamespace(gcnArchName=f"{arch}:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", prefer)
    return asked


def test_rocm_prefers_hipblaslt_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = fake_rocm(monkeypatch, "gfx942", torch._C._BlasBackend.Cublaslt)
    with caplog.at_level("INFO"):
        backend = ops.load("rocm")
    assert asked == ["hipblaslt"] and "Dense products on gfx942: hipBLASLt." in caplog.text
    assert isinstance(backend, GpuOps) and backend.target == Target("gfx942")
    assert backend.device == torch.device("cuda:1") and backend.page_size == 64


def test_a_torch_without_hipblaslt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rocm(monkeypatch, "gfx942", torch._C._BlasBackend.Cublas)
    with pytest.raises(UsageError, match="has no hipBLASLt for gfx942 and would multiply with"):
        ops.load("rocm")


def test_other_chips_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_rocm(monkeypatch, "gfx90a", torch._C._BlasBackend.Cublaslt)
    with pytest.raises(UsageError, match="architecture 'gfx90a' is not supported; use an MI300"):
        ops.load("rocm")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UsageError, match="architecture 'sm_80' is not supported; use compute"):
        ops.load("cuda")


def test_dequantised_weights_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    backend = rocm.virtual("gfx942", lambda *arguments, **rest: None)
    for kind, block in ((torch.int8, None), (OCP, (16, 16)), (OCP, None), (OCP, (128, 128))):
        for n in (64, 96):
            backend.pack(quantised(n, 48, dtype=torch.bfloat16, kind=kind, block=block))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("Weights in int8 (the first: 64 x 48) are kept in torch.bfloat16")
    assert told[1].startswith("Weights in float8_e4m3fn with a scale for 16 x 16 numbers")


@pytest.mark.parametrize("columns", [72, 64])
def test_fp8_columns_are_filled_up_to_a_multiple_of_16(columns: int) -> None:
    """The vendor's product refuses other widths, and a lane could not load 16 codes at once."""
    w = quantised(64, columns, dtype=torch.bfloat16, kind=OCP, dynamic=True)
    packed = rocm.virtual("gfx950", lambda *arguments, **rest: None).pack(w)
    data = packed.packed.matrices.data
    assert data.shape == (1, 64, -(-columns // 16) * 16) and data.is_contiguous()
    assert torch.equal(packed.data.float(), w.data.float())
    assert not data[0, :, columns:].view(torch.uint8).any()


def test_both_promise_rows_alike_in_deterministic_inference() -> None:
    for name, arch in (("rocm", "gfx942"), ("cuda", "sm_90")):
        usual = GpuOps(name, torch.device("cpu"), Target(arch), jit)
        found = ops.promising(usual)
        assert getattr(found, "batch_invariant") and not hasattr(usual, "batch_invariant")  # noqa: B009  # no attribute of Ops
        assert isinstance(found, GpuOps) and (found.name, found.target) == (name, usual.target)
