"""The table of tiles and the rule behind it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_portable.errors import UsageError
from glm_portable.kernels import tiles, tuned_lines
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


SOURCE = {
    "device": "a card", "torch": "2.13", "triton": "3.9", "date": "2026-01-31",
    "median_us": 40.0, "rule_us": 50,
}  # fmt: skip


def line(e: int, n: int, k: int, dtype: str, tokens: int, block_m: int) -> dict[str, Any]:
    options = {"num_warps": 4, "num_stages": 2}
    tile = {"block_m": block_m, "block_n": 64, "block_k": 64, "group_m": 1, "options": options}
    key = {"E": e, "N": n, "K": k, "dtype": dtype, "tokens": tokens}
    return {**key, "tile": tile, "source": SOURCE}


def write(folder: Path, *lines: Any, arch: str = "gfx942") -> Path:
    path = folder / f"{arch}.json"
    path.write_text(json.dumps({"tiles": lines}), encoding="utf-8")
    return path


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write(
        tmp_path,
        line(8, 384, 256, "fp8", 16, 16), line(8, 384, 256, "fp8", 1024, 64),
        line(8, 384, 256, "bfloat16", 16, 32), line(8, 384, 256, "w8a16", 16, 128),
        line(20, 3072, 5120, "fp8", 4, 16), line(20, 3072, 5120, "fp8", 16, 32),
    )  # fmt: skip
    monkeypatch.setattr(tiles, "TABLES", tmp_path)
    tiles.table.cache_clear()
    yield
    tiles.table.cache_clear()


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize(
    ("tokens", "block_m"), [(1, 16), (16, 16), (120, 16), (130, 64), (9000, 64)]
)
def test_the_nearest_number_of_tokens_is_taken(tokens: int, block_m: int) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        got = choose(Target("gfx942"), 8, 384, 256, dtype, tokens)
        assert got == Tile(block_m, 64, 64, 1, {"num_warps": 4, "num_stages": 2})


@pytest.mark.usefixtures("tuned")
def test_another_shape_type_or_chip_falls_back_to_the_rule() -> None:
    fp8 = torch.float8_e4m3fn
    assert choose(Target("gfx942"), 8, 384, 256, torch.bfloat16, 16).block_m == 32
    for target, n in ((Target("gfx942"), 385), (Target("gfx950"), 384)):
        assert choose(target, 8, n, 256, fp8, 16) == default(target, 8, 256, fp8, 16)
    assert choose(Target("gfx942"), 8, 384, 256, torch.float32, 16) == default(
        Target("gfx942"), 8, 256, torch.float32, 16
    )


@pytest.mark.usefixtures("tuned")
def test_wider_activations_have_lines_of_their_own() -> None:
    fp8 = torch.float8_e4m3fnuz
    assert choose(Target("gfx942"), 8, 384, 256, fp8, 16, w8a16=True).block_m == 128
    assert choose(Target("gfx942"), 8, 384, 256, fp8, 16).block_m == 16


@pytest.mark.usefixtures("tuned")
def test_of_two_equally_near_lines_the_smaller_counts() -> None:
    fp8 = torch.float8_e4m3fnuz
    got = [choose(Target("gfx942"), 20, 3072, 5120, fp8, n, 8).block_m for n in (7, 8, 9)]
    assert got == [16, 16, 32]  # 20 of 160 experts: a rank of EP 8


@pytest.mark.usefixtures("tuned")
def test_a_shape_served_by_the_rule_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tiles._say_rule.cache_clear()
    for tokens in (1, 1, 300):
        choose(Target("gfx950"), 77, 384, 256, torch.bfloat16, tokens)
        choose(Target("gfx942"), 8, 384, 256, torch.bfloat16, tokens)
    assert [r.getMessage() for r in caplog.records] == [
        "no measured tile for E=77 N=384 K=256 bfloat16 on gfx950: using the rule's; "
        "glm-portable tune finds the fastest"
    ]


def changed(path: str, value: Any) -> Any:
    """A right line with one thing changed; a value of ... takes it away."""
    entry: Any = json.loads(json.dumps(line(8, 384, 256, "fp8", 16, 16)))
    *where, last = path.split(".")
    place = entry
    for key in where:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return entry


MALFORMED = [
    (5, "is no object"),
    (changed("E", ...), "is without 'E'"),
    (changed("card", "MI300X"), "is with 'card', which nobody knows"),
    (changed("N", "384"), "has N '384', which must be a positive integer"),
    (changed("tokens", 0), "has tokens 0, which must be a positive integer"),
    (changed("dtype", "float16"), "has dtype 'float16', which is not one of bfloat16, fp8"),
    (changed("tile.block_n", 96), "has block_n 96, which must be a power of two"),
    (changed("tile.group_m", -1), "has group_m -1"),
    (changed("tile.options", {"num_warps": 4}), "has 'options' without num_warps and num_stages"),
    (changed("tile.options.cluster", 2), "has option 'cluster', which is not one of num_warps"),
    (changed("tile.options.num_warps", 3), "has num_warps 3, which is not one of 1, 2, 4, 8, 16"),
    (changed("source.date", ...), "has a 'source' that is without 'date'"),
    (changed("source.device", ""), "has source device '', which must be a text"),
    (changed("source.median_us", 0), "has source median_us 0, which must be microseconds"),
]


@pytest.mark.parametrize(("entry", "message"), MALFORMED, ids=lambda x: x if type(x) is str else "")
def test_a_malformed_line_is_named(entry: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, line(8, 384, 256, "bfloat16", 16, 16), entry)
    with pytest.raises(UsageError) as caught:
        tiles.read(path, Target("gfx942"))
    assert str(caught.value).startswith(f"{path}: tile 2 {message}")


def test_a_line_given_twice_or_too_large_for_the_chip_is_named(tmp_path: Path) -> None:
    entry = line(8, 384, 256, "fp8", 16, 16)
    with pytest.raises(UsageError, match="tile 2 is for the same as tile 1"):
        tiles.read(write(tmp_path, entry, entry), Target("gfx942"))
    entry["tile"] |= {"block_m": 256, "block_n": 128, "block_k": 256}
    path = write(tmp_path, entry)
    with pytest.raises(UsageError, match="tile 1 needs 98,304 bytes .* gfx942 has 65,536"):
        tiles.read(path, Target("gfx942"))
    tiles.read(path, Target("sm_90"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tiles": 5}'])
def test_a_file_that_is_no_table(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gfx942.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="gfx942.json (cannot be read as JSON|must hold)"):
        tiles.read(path, Target("gfx942"))


def test_lines_survive_writing_and_merging(tmp_path: Path) -> None:
    old = tiles.read(
        write(tmp_path, *(line(8, 384, 256, "fp8", t, 16) for t in (16, 1))), Target("gfx942")
    )
    entry = line(8, 384, 256, "fp8", 16, 64)
    new = tiles.read(write(tmp_path, entry), Target("gfx942"))
    path = tmp_path / "tables" / "gfx942.json"
    tuned_lines.write(path, tuned_lines.merged(old, new))
    back = tiles.read(path, Target("gfx942"))
    assert [(x.tokens, x.tile["block_m"]) for x in back] == [(1, 16), (16, 64)]
    assert [p.name for p in path.parent.iterdir()] == ["gfx942.json"]


@pytest.mark.parametrize("path", sorted(tiles.TABLES.glob("*.json")), ids=lambda p: p.stem)
def test_the_tables_in_the_repository_can_be_read(path: Path) -> None:
    target = Target(path.stem)
    for entry in tiles.table(path.stem):
        dtype = torch.bfloat16 if entry.dtype == "bfloat16" else torch.float8_e4m3fn
        w8a16 = entry.dtype == "w8a16"
        tile = choose(target, entry.experts, entry.n, entry.k, dtype, entry.tokens, 8, w8a16)
        assert tile == Tile(**entry.tile)


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
