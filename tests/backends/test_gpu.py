"""What the GPU backends do before any kernel runs: dialects of FP8, and refusals."""

import pytest
import torch

from glm_portable import ops
from glm_portable.backends import rocm
from glm_portable.backends._gpu import check_torch, to_dialect
from glm_portable.errors import UsageError

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
