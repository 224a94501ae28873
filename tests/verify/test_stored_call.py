"""Calls in folders: every bit comes back, and nothing else passes for one."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from glm_portable.errors import UsageError
from glm_portable.verify.call import Call
from glm_portable.verify.cases.data import normal
from glm_portable.verify.stored_call import StoredCall, read, write

NUMBERS = {
    "x": normal(3, 8).bfloat16(),
    "w": normal(4, 8).to(torch.float8_e4m3fn),
    "w_scale": torch.rand(4, 1),
    "odd": normal(2, 4).to(torch.float8_e4m3fnuz).T,
    "experts": torch.tensor([[1, 2]], dtype=torch.int32),
}
CALL = Call("linear", NUMBERS, {"block": None, "dynamic_activations": True})
STORED = StoredCall(
    CALL,
    torch.bfloat16,
    {"exact": {"y": normal(3, 4).double()}, "a": {"y": torch.tensor([float("nan"), -0.0])}},
    {"chip": "gfx942", "error": 0.25},
)


def same(a: StoredCall, b: StoredCall) -> None:
    assert (a.call.op, a.call.attributes, a.dtype) == (b.call.op, b.call.attributes, b.dtype)
    assert a.about == b.about and a.results.keys() == b.results.keys()
    pairs = [(a.call.tensors, b.call.tensors), *((a.results[k], b.results[k]) for k in a.results)]
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype, name
            assert torch.equal(
                mine[name].contiguous().view(torch.uint8),
                theirs[name].contiguous().view(torch.uint8),
            )


def test_every_bit_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "case", STORED)
    same(read(tmp_path / "deep" / "case"), STORED)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["case"]


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, STORED)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_numpy_reads_it_as_the_documentation_says(tmp_path: Path) -> None:
    write(tmp_path / "case", STORED)
    found = load_file(tmp_path / "case" / "inputs.safetensors")
    x = (found["x"].astype("u4") << 16).view("f4")
    assert np.array_equal(x, NUMBERS["x"].float().numpy())


def test_an_older_one_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    write(tmp_path / "case", STORED)
    write(tmp_path / "case", StoredCall(CALL, torch.float32, {}))
    assert read(tmp_path / "case").dtype == torch.float32
    (tmp_path / "letters").mkdir()
    with pytest.raises(UsageError, match="holds no stored call; choose another folder"):
        write(tmp_path / "letters", STORED)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write(tmp_path / "case", StoredCall(CALL, torch.float32, {}, {"error": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def damaged(folder: Path, how: str) -> None:
    header = folder / "call.json"
    values = json.loads(header.read_text())
    if how == "no header":
        header.unlink()
    elif how == "not JSON":
        header.write_text(header.read_text()[:-9])
    elif how == "a list":
        header.write_text("[]")
    elif how == "foreign":
        header.write_text('{"architectures": ["Glm4MoeForCausalLM"]}')
    elif how == "newer":
        header.write_text(json.dumps(values | {"version": 2}))
    elif how == "no such op":
        header.write_text(json.dumps(values | {"op": "conv"}))
    elif how == "no such type":
        header.write_text(json.dumps(values | {"dtype": "float4"}))
    elif how == "no files":
        header.write_text(json.dumps(values | {"files": {}}))
    elif how == "a file elsewhere":
        header.write_text(json.dumps(values | {"files": {"../x.safetensors": {}}}))
    elif how == "one bit":
        data = bytearray((folder / "inputs.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "inputs.safetensors").write_bytes(data)
    elif how == "no inputs":
        (folder / "inputs.safetensors").unlink()
    elif how == "no folder":
        shutil.rmtree(folder)
    elif how == "no tensors":
        name = "inputs.safetensors"
        (folder / name).write_bytes(b"nothing")
        values["files"][name]["sha256"] = hashlib.sha256(b"nothing").hexdigest()
        header.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no header", "is no stored call: call.json cannot be read"),
        ("no folder", "is no stored call: call.json cannot be read"),
        ("not JSON", "is not JSON"),
        ("a list", "does not describe a stored call"),
        ("foreign", "does not describe a stored call"),
        ("newer", "version 2 of the format"),
        ("no such op", "calls the op 'conv'"),
        ("no such type", "is damaged"),
        ("no files", "is damaged"),
        ("a file elsewhere", "is damaged"),
        ("one bit", "is not the file that was written"),
        ("no inputs", "cannot be read"),
        ("no tensors", "is no safetensors file"),
    ],
)
def test_damage_is_named(tmp_path: Path, how: str, message: str) -> None:
    write(tmp_path / "case", STORED)
    damaged(tmp_path / "case", how)
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path / "case")
    assert "\n" not in str(caught.value) and str(tmp_path / "case") in str(caught.value)
