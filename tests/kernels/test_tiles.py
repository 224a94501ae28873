"""The table of tiles and the rule behind it."""

import json
from pathlib import Path

import pytest
import torch

from glm_portable.errors import UsageError
from glm_portable.kernels import tiles
from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile, choose, default

ARCHES = ["gfx942", "gfx950", "sm_90", "sm_100"]
# (experts, hidden size, expert width) of GLM-4.5 and Air
MODELS = [(160, 5120, 1536), (128, 4096, 1408)]
SHAPES = [
    (experts // ep, n, k)
    for experts, hidden, width in MODELS
    for ep, tp in ((1, 1), (1, 2), (1, 4), (1, 8), (8, 1), (16, 1))
    for n, k in ((2 * width // tp, hidden), (hidden, width // tp))
]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 1024, 2047, 2048, 2049])
def test_the_rule_fits_every_shape_of_the_models(
    arch: str, dtype: torch.dtype, tokens: int
) -> None:
    target = Target(arch)
    for experts, _, k in SHAPES:
        tile = default(target, experts, k, dtype, tokens, 8)
        for size in (tile.block_m, tile.block_n, tile.block_k):
            assert size >= 16 and size & (size - 1) == 0
        assert tile.block_k >= (32 if dtype.itemsize == 1 else 16)
        assert 128 % tile.block_k == 0  # never across a block of scales
        rows = -(-tokens * 8 // experts)
        assert tile.block_m >= min(rows, 128) or tile.block_m == 128


def line(e: int, n: int, k: int, dtype: str, tokens: int, block_m: int) -> dict[str, object]:
    tile = {"block_m": block_m, "block_n": 64, "block_k": 64, "options": {"num_warps": 4}}
    return {"E": e, "N": n, "K": k, "dtype": dtype, "tokens": tokens, "tile": tile}


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line(8, 384, 256, "fp8", 16, 16), line(8, 384, 256, "fp8", 1024, 64)]
    lines.append(line(8, 384, 256, "bfloat16", 16, 32))
    (tmp_path / "gfx942.json").write_text(json.dumps({"tiles": lines}))
    monkeypatch.setattr(tiles, "TABLES", tmp_path)
    tiles.table.cache_clear()


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize(
    ("tokens", "block_m"), [(1, 16), (16, 16), (120, 16), (130, 64), (9000, 64)]
)
def test_the_nearest_number_of_tokens_is_taken(tokens: int, block_m: int) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        got = choose(Target("gfx942"), 8, 384, 256, dtype, tokens)
        assert got == Tile(block_m, 64, 64, 1, {"num_warps": 4})
    tiles.table.cache_clear()


@pytest.mark.usefixtures("tuned")
def test_another_shape_type_or_chip_falls_back_to_the_rule() -> None:
    fp8 = torch.float8_e4m3fn
    assert choose(Target("gfx942"), 8, 384, 256, torch.bfloat16, 16).block_m == 32
    for target, n in ((Target("gfx942"), 385), (Target("gfx950"), 384)):
        assert choose(target, 8, n, 256, fp8, 16) == default(target, 8, 256, fp8, 16)
    tiles.table.cache_clear()


@pytest.mark.parametrize("path", sorted(tiles.TABLES.glob("*.json")), ids=lambda p: p.stem)
def test_the_tables_in_the_repository_can_be_read(path: Path) -> None:
    target = Target(path.stem)
    for entry in tiles.table(path.stem):
        dtype = torch.float8_e4m3fn if entry["dtype"] == "fp8" else torch.bfloat16
        tile = choose(target, entry["E"], entry["N"], entry["K"], dtype, entry["tokens"])
        assert tile == Tile(**entry["tile"])


@pytest.mark.parametrize(
    ("arch", "fp8", "top"),
    [
        ("gfx942", torch.float8_e4m3fnuz, 224.0),
        ("gfx950", torch.float8_e4m3fn, 448.0),
        ("sm_90", torch.float8_e4m3fn, 448.0),
        ("sm_100", torch.float8_e4m3fn, 448.0),
    ],
)
def test_the_dialect_of_each_chip(arch: str, fp8: torch.dtype, top: float) -> None:
    assert (Target(arch).fp8, Target(arch).fp8_top) == (fp8, top)


@pytest.mark.parametrize("arch", ["gfx90a", "gfx1100", "sm_80", "sm_", "MI300X", ""])
def test_a_chip_without_fp8_is_refused(arch: str) -> None:
    with pytest.raises(UsageError, match=f"architecture '{arch}' is not supported; use"):
        Target(arch)
