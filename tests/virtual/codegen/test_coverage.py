"""The tiles for all shapes of both models are sound, and what they come down to is compiled."""

from dataclasses import replace

import pytest

from glm_portable.kernels.target import Target
from glm_portable.virtual.chips import CHIPS
from glm_portable.virtual.codegen.coverage import (
    QUANTISATIONS,
    TOKENS,
    alike,
    distinct,
    products,
    shapes,
    unsound,
)


def test_the_shapes_are_those_of_the_models_on_every_number_of_ranks() -> None:
    found = {shape.model: shape for shape in shapes()}
    assert len(found) == 2 * (6 * 2 + 4 * 6)
    sizes = {name: (s.experts, s.n, s.k) for name, s in found.items()}
    assert sizes["GLM-4.5 TP8 gate_up"] == (160, 384, 5120)
    assert sizes["GLM-4.5 TP8 down"] == (160, 5120, 192)
    assert sizes["GLM-4.5 EP16 gate_up"] == (10, 3072, 5120)
    assert sizes["Air TP2 down"] == (128, 4096, 704)
    assert [sizes[f"Air TP{n} dense down"][2] for n in (1, 2, 4, 8)] == [10944, 5472, 2736, 1368]
    assert sizes["GLM-4.5 TP8 qkv"] == (1, 14 * 128, 5120)
    assert sizes["Air TP4 o"] == (1, 4096, 24 * 128)


@pytest.mark.parametrize("target", CHIPS)
def test_every_tile_is_sound(target: str) -> None:
    at = Target(target)
    listed = list(products(at))
    assert {p.quantisation for p in listed} == set(QUANTISATIONS)
    assert {int(p.configuration.split()[-2]) for p in listed} == set(TOKENS)
    fixed = list(alike(at))
    assert len(fixed) == len(list(shapes())) * len(QUANTISATIONS)
    assert [sentence for p in listed + fixed for sentence in unsound(at, p)] == []


def test_unsound_tiles_are_named() -> None:
    at = Target("gfx942")
    good = next(p for p in products(at) if p.quantisation == "block")
    assert unsound(at, good) == []
    tile = good.tile
    for unfit, text in (
        (replace(tile, block_m=24), "block_m is 24, not a power of two"),
        (replace(tile, block_k=16), "block_k is 16, not a power of two of at least 32"),
        (replace(tile, block_k=256), "a step of 256 crosses a block of 128 scales"),
        (replace(tile, block_m=512), "bytes, and the chip has 65,536"),
    ):
        found = unsound(at, replace(good, tile=unfit))
        assert any(text in sentence for sentence in found), found
    arguments = {**good.launch.arguments, "EVEN_K": not good.launch.arguments["EVEN_K"]}
    odd = replace(good, launch=replace(good.launch, arguments=arguments))
    assert any("EVEN_K is" in sentence for sentence in unsound(at, odd))


@pytest.mark.parametrize("target", ["gfx942", "sm_90"])
def test_products_come_down_to_few_kernels(target: str) -> None:
    at = Target(target)
    every, few = list(products(at)), list(distinct(at, products(at)))
    assert 50 < len(few) < len(every) / 5
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "EVEN_K", "ROUTED", "BIAS", "SHARE", "B_ROWS")
    constants = {tuple(p.launch.arguments[n] for n in names) for p in every}
    assert constants == {tuple(p.launch.arguments[n] for n in names) for p in few}


def test_another_number_of_tokens_in_the_same_tile_is_no_new_kernel() -> None:
    """17 tokens give an expert no more rows than 16 do."""
    at = Target("gfx942")
    experts = [p for p in distinct(at, products(at)) if p.launch.arguments["ROUTED"]]
    assert any(p.configuration.endswith(" 1 tokens") for p in experts)
    assert not any(p.configuration.endswith(" 17 tokens") for p in experts)


def test_deterministic_inference_has_one_tile_for_each_kind_of_product() -> None:
    at = Target("gfx950")
    few = list(distinct(at, alike(at)))
    assert {p.quantisation for p in few} == set(QUANTISATIONS)
    assert {p.tile.block_m for p in few} == {32}
    assert any(p.quantisation == "bf16" and not p.launch.arguments["ROUTED"] for p in few)
