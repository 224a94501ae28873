import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from glm_portable.errors import UsageError
from glm_portable.shards import INDEX_FILE, SINGLE_FILE, STAGED_ELEMENTS, open_folder

A, B = "model.a.weight", "model.b.weight"


def pair() -> dict[str, Tensor]:
    return {A: torch.arange(6.0).view(2, 3), B: torch.ones(4, dtype=torch.bfloat16)}


def raw_file(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
dtypes = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8]
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(shapes, dtypes), max_size=6))
@settings(max_examples=60, deadline=None)
def test_reads_what_the_safetensors_library_writes(
    tmp_path_factory: pytest.TempPathFactory,
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]],
) -> None:
    layout.pop("__metadata__", None)
    folder = tmp_path_factory.mktemp("model")
    tensors = {n: torch.randint(-9, 9, s).to(d) for n, (s, d) in layout.items()}
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    entries = open_folder(folder)
    assert entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = entries[name].read()
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(found.float(), tensor.float())


@pytest.mark.parametrize("rows", [64, 2 * STAGED_ELEMENTS + 1])
def test_conversion_rounds_once(tmp_path: Path, rows: int) -> None:
    value = torch.randn(rows, 3)
    save_file({B: torch.ones(5), A: value}, tmp_path / SINGLE_FILE)
    out = torch.empty(rows, 3, dtype=torch.bfloat16)
    open_folder(tmp_path)[A].read_into(out)
    assert torch.equal(out, value.to(torch.bfloat16))


def test_fills_one_slice_and_nothing_else(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / SINGLE_FILE)
    out = torch.full((4, 3), -1.0)
    open_folder(tmp_path)[A].read_into(out[1:3])
    assert torch.equal(out[1:3], pair()[A])
    assert (out[0] == -1).all() and (out[3] == -1).all()


@given(st.integers(min_value=0))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_named(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("model") / SINGLE_FILE
    whole = save(pair())
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(UsageError, match=f"{SINGLE_FILE} is truncated or corrupt"):
        open_folder(path.parent)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_header_never_fails_otherwise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("model") / SINGLE_FILE
    damaged = bytearray(save(pair()))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        for entry in open_folder(path.parent).values():
            entry.read()
    except UsageError as error:
        assert SINGLE_FILE in str(error)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

CORRUPT: dict[str, tuple[Any, bytes]] = {
    "not JSON": (b"{'a': 1}", b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "nested too deep": (b"[" * 100_000, b""),
    "not an object": ([1, 2], b""),
    "no dtype": ({A: {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "entry is a number": ({A: 3}, bytes(8)),
    "negative dimension": ({A: F32 | {"shape": [-2]}}, bytes(8)),
    "fractional dimension": ({A: F32 | {"shape": [2.0]}}, bytes(8)),
    "backward offsets": ({A: F32 | {"data_offsets": [8, 0]}}, bytes(8)),
    "three offsets": ({A: F32 | {"data_offsets": [0, 4, 8]}}, bytes(8)),
    "more elements than bytes": ({A: F32 | {"shape": [3]}}, bytes(8)),
    "offsets beyond the file": ({A: F32}, bytes(7)),
    "bytes nobody describes": ({A: F32}, bytes(9)),
    "a gap": ({A: F32, B: F32 | {"data_offsets": [9, 17]}}, bytes(17)),
    "the same bytes twice": ({A: F32, B: F32}, bytes(16)),
    "an overlap": ({A: F32, B: F32 | {"data_offsets": [4, 12]}}, bytes(12)),
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_header_is_named(tmp_path: Path, what: str) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(raw_file(*CORRUPT[what]))
    with pytest.raises(UsageError, match=f"{SINGLE_FILE} is truncated or corrupt"):
        open_folder(tmp_path)


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(UsageError, match=f"a header of {2**62} bytes does not fit"):
        open_folder(tmp_path)


@pytest.mark.parametrize("dtype", ["F64", "I64", "F8_E5M2", "U8"])
def test_other_dtypes_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    header = {A: {"dtype": dtype, "shape": [1], "data_offsets": [0, 8]}}
    (tmp_path / SINGLE_FILE).write_bytes(raw_file(header, bytes(8)))
    with pytest.raises(UsageError, match=f"{A} in .*{SINGLE_FILE} has dtype {dtype}"):
        open_folder(tmp_path)


def test_a_file_that_shrinks_after_opening_is_named(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / SINGLE_FILE)
    entries = open_folder(tmp_path)
    size = (tmp_path / SINGLE_FILE).stat().st_size
    with (tmp_path / SINGLE_FILE).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(UsageError, match=f"{SINGLE_FILE} is truncated or corrupt"):
        [entry.read() for entry in entries.values()]


def test_no_weights_at_all(tmp_path: Path) -> None:
    save_file({"base_model.a": torch.ones(2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(UsageError, match="has neither model.safetensors nor"):
        open_folder(tmp_path)


def test_files_of_other_names_need_no_index(tmp_path: Path) -> None:
    for i, (name, tensor) in enumerate(pair().items()):
        save_file(
            {name: tensor}, tmp_path / f"quant_model_weights-0000{i + 1}-of-00002.safetensors"
        )
    assert set(open_folder(tmp_path)) == set(pair())


def test_an_index_of_another_name_is_followed_and_two_are_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    index = (tmp_path / "model.safetensors.index.json").rename(
        tmp_path / "quant_model_weights.safetensors.index.json"
    )
    assert set(open_folder(tmp_path)) == set(pair())
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(
        UsageError, match=r"1\.safetensors, listed in quant_model_weights.* missing"
    ):
        open_folder(tmp_path)
    (tmp_path / "other.safetensors.index.json").write_text(index.read_text())
    with pytest.raises(UsageError, match="2 indexes"):
        open_folder(tmp_path)


def two_shards(folder: Path) -> None:
    for i, (name, tensor) in enumerate(pair().items()):
        save_file({name: tensor}, folder / f"{i}.safetensors")
    write_index(folder, {A: "0.safetensors", B: "1.safetensors"})


def test_an_index_joins_its_files(tmp_path: Path) -> None:
    two_shards(tmp_path)
    entries = open_folder(tmp_path)
    assert {n: e.shard.path.name for n, e in entries.items()} == {
        A: "0.safetensors",
        B: "1.safetensors",
    }


def _without_a_file(folder: Path) -> None:
    (folder / "1.safetensors").unlink()


def _without_a_tensor(folder: Path) -> None:
    save_file({"model.c": torch.ones(1)}, folder / "1.safetensors")


def _with_the_wrong_file(folder: Path) -> None:
    write_index(folder, {A: "1.safetensors", B: "0.safetensors"})


def _with_a_tensor_twice(folder: Path) -> None:
    save_file(pair(), folder / "1.safetensors")


def _with_a_path(folder: Path) -> None:
    write_index(folder, {A: "../0.safetensors", B: "1.safetensors"})


def _with_a_number(folder: Path) -> None:
    write_index(folder, {A: 0, B: "1.safetensors"})


def _with_a_list(folder: Path) -> None:
    write_index(folder, [A, B])


def _empty(folder: Path) -> None:
    write_index(folder, {})


def _without_a_map(folder: Path) -> None:
    (folder / INDEX_FILE).write_text("{}", encoding="utf-8")


def _cut_short(folder: Path) -> None:
    (folder / INDEX_FILE).write_text('{"weight_map": {', encoding="utf-8")


def _with_a_partial_copy(folder: Path) -> None:
    save_file(pair() | {"model.c": torch.ones(1)}, folder / "2.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_file, "1.safetensors, listed in .*, is missing"),
        (_without_a_tensor, f"1.safetensors lacks {B}"),
        (_with_the_wrong_file, f"1.safetensors lacks {A}"),
        (_with_a_tensor_twice, f"{A} is in both .*0.safetensors and .*1.safetensors"),
        (_with_a_path, "must name files of its own folder"),
        (_with_a_number, "must name files of its own folder"),
        (_with_a_list, "is not a safetensors index"),
        (_empty, "must name files of its own folder"),
        (_without_a_map, "is not a safetensors index"),
        (_cut_short, "is not a safetensors index"),
        (_with_a_partial_copy, f"{A} is in both .*0.safetensors and .*2.safetensors"),
    ],
)
def test_an_index_that_does_not_fit(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    two_shards(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message):
        open_folder(tmp_path)


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_weights_beside_the_listed_ones_belong_to_the_model(tmp_path: Path, layout: str) -> None:
    if layout == "single":
        save_file(pair(), tmp_path / SINGLE_FILE)
    else:
        two_shards(tmp_path)
    save_file({"model.layers.9.enorm.weight": torch.ones(2)}, tmp_path / "mtp.safetensors")
    assert open_folder(tmp_path).keys() == {A, B, "model.layers.9.enorm.weight"}


def test_copies_and_adapters_beside_the_model_are_left_alone(tmp_path: Path) -> None:
    two_shards(tmp_path)
    save_file({A: torch.zeros(2, 3)}, tmp_path / "consolidated.safetensors")
    save_file({"base_model.lora_A": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    save_file({"step": torch.zeros(2, dtype=torch.int64)}, tmp_path / "optimizer.safetensors")
    entries = open_folder(tmp_path)
    assert entries.keys() == {A, B}
    assert torch.equal(entries[A].read(), pair()[A])
