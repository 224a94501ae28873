"""`glm-portable convert`: the same model as converted at load, kills, resumption, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from glm_portable import GLM, modelslim, ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.cli import main
from glm_portable.config import W8A8, ModelConfig
from glm_portable.convert import Conversion
from glm_portable.convert.plan import Output
from glm_portable.convert.write import ShardWriter, layout
from glm_portable.errors import UsageError
from glm_portable.model import Model
from glm_portable.shards import open_folder
from tests.modelslim_checkpoint import lose_router_biases, modelslim_tensors, write_modelslim
from tests.random_checkpoint import (
    Quantize,
    dequantize_tensors,
    random_tensors,
    small_config,
    write_checkpoint,
    write_files,
)
from tests.test_model import IDS, prefill

CONFIG = small_config(
    num_hidden_layers=2, n_routed_experts=4, use_qk_norm=True, torch_dtype="bfloat16"
)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
RECORD = "conversion.json"


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def outputs(folder: Path, quantization: str | None = None) -> tuple[Tensor, Tensor]:
    """Logits of the model and of its MTP layer."""
    config = ModelConfig.load(folder)
    weights = Checkpoint(folder, config, dtype=torch.bfloat16, quantization=quantization)
    model = Model(config, ops.load("reference"), weights)
    step, caches = prefill(model, len(IDS) - 1)
    hidden = model.forward(IDS[:-1], step, caches)
    assert model.mtp is not None
    drafted = model.mtp(IDS[1:], hidden, step, caches[-1])
    return model.logits(hidden), model.mtp_logits(drafted)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CASES: list[tuple[Quantize | None, str]] = [
    (None, "w8a8"), ("fp8", "w8a8"), ("fp8_block", "w8a8"),
    ("fp8", "bf16"), ("fp8_block", "bf16"), ("int8", "bf16"),
]  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("kind", "target"), CASES)
def test_the_result_computes_what_the_conversion_at_load_computes(
    kind: Quantize | None, target: str, tied: bool, tmp_path: Path
) -> None:
    config = CONFIG | {"tie_word_embeddings": tied}
    write_checkpoint(tmp_path / "in", config, quantize=kind, shards=2)
    done: list[int] = []
    conversion = Conversion(tmp_path / "in", tmp_path / "out", target, shard_bytes=40_000)
    assert conversion.run(done.append) == 0
    assert sum(done) == conversion.total_bytes and len(conversion.files) > 5
    for ours, theirs in zip(
        outputs(tmp_path / "out"), outputs(tmp_path / "in", target), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out" / RECORD).exists()


def test_the_result_is_in_msmodelslims_layout(tmp_path: Path) -> None:
    """As the fixture writes it, down to the bytes of every tensor and the tags."""
    write_files(tmp_path / "in", CONFIG, random_tensors(CONFIG))
    Conversion(tmp_path / "in", tmp_path / "out", "w8a8").run()
    tensors, tags = modelslim_tensors(CONFIG)
    (shard,) = (tmp_path / "out").glob("*.safetensors")
    found = load_file(shard)  # the safetensors library takes our file
    assert set(found) == set(tensors)
    for name, value in found.items():
        assert value.shape == tensors[name].shape
        assert torch.equal(value.float(), tensors[name].float()), name
        if not name.endswith("_proj.bias"):  # there msmodelslim writes float32
            assert value.dtype == tensors[name].dtype
    assert modelslim.load(tmp_path / "out") == tags
    assert ModelConfig.load(tmp_path / "out").quantization == W8A8


def test_an_fp8_checkpoint_becomes_the_bf16_one_of_the_same_names(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path / "in", CONFIG, quantize="fp8")
    Conversion(tmp_path / "in", tmp_path / "out", "bf16").run()
    found = {n: e.read() for n, e in open_folder(tmp_path / "out").items()}
    plain = dequantize_tensors(tensors)
    assert set(found) == set(plain) == set(random_tensors(CONFIG))
    head = f"model.layers.{CONFIG['num_hidden_layers']}.shared_head.head.weight"
    assert torch.equal(found[head], found["lm_head.weight"])  # not the rounded copy
    for name in set(found) - {head}:
        expected = plain[name]
        if tensors[name].dtype == torch.float8_e4m3fn:
            expected = expected.to(torch.bfloat16)
        assert torch.equal(found[name].float(), expected.float()), name
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw == CONFIG and modelslim.load(tmp_path / "out") is None


def test_files_keep_to_their_size_and_the_index_to_its_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in", CONFIG)
    Conversion(tmp_path / "in", tmp_path / "out", "w8a8", shard_bytes=50_000).run()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    held: dict[str, str] = {}
    for number, path in enumerate(files):
        assert path.name == f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        with safe_open(path, "pt") as file:
            held |= dict.fromkeys(file.keys(), path.name)
            modules = {name.partition(".weight")[0] for name in file.keys()}
        assert path.stat().st_size <= 50_000 or len(modules) == 1
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(
        e.nbytes for e in open_folder(tmp_path / "out").values()
    )


def test_tensors_are_aligned_to_their_type() -> None:
    shapes = [(3, 1), (5,), (7, 3), (1, 1)]
    dtypes = [torch.int8, torch.float32, torch.bfloat16, torch.int8]
    given = [Output(str(i), d, s) for i, (d, s) in enumerate(zip(dtypes, shapes, strict=True))]
    header, offsets = layout(given)
    assert len(header) % 8 == 0
    assert all(offsets[o.name] % o.dtype.itemsize == 0 for o in given)
    end = len(header)
    for output in sorted(given, key=lambda o: offsets[o.name]):
        assert offsets[output.name] == end
        end += output.nbytes


def test_the_pocket_model_is_whole_after_conversion(tmp_path: Path) -> None:
    result = run("glm_portable/pocket", tmp_path / "out", "--quantization", "w8a8")
    assert result.exit_code == 0, result.output
    assert f"Wrote {tmp_path / 'out'} (w8a8): 0.01 GB in 1 file, " in result.stderr
    for name in (*TOKENIZER, "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (pocket.FOLDER / name).read_bytes()
    ours = GLM.load(tmp_path / "out", backend="cpu")
    theirs = GLM.load(backend="cpu", quantization="w8a8", on_note=lambda note: None)
    ids = ours.tokenizer.encode("What is 17 + 25?")
    assert torch.equal(ours.logits(ids), theirs.logits(ids))
    assert torch.equal(ours.mtp_logits(ids), theirs.mtp_logits(ids))


def run(model: object, output: Path, *options: str) -> Any:
    return CliRunner().invoke(main, ["convert", str(model), str(output), *options])


BIG = CONFIG | {"n_routed_experts": 64, "hidden_size": 128, "torch_dtype": "float32"}
LIMIT = 60_000


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred files' worth, and beside it what an undisturbed conversion makes of it."""
    folder = tmp_path_factory.mktemp("big")
    write_checkpoint(folder / "in", BIG)
    assert Conversion(folder / "in", folder / "whole", "w8a8", shard_bytes=LIMIT).run() == 0
    return folder


SLOW_DISK = """import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from glm_portable.convert.write import ShardWriter
write = ShardWriter.write
ShardWriter.write = lambda self: (write(self), time.sleep(0.02))[0]
"""
"""Else a conversion may have ended before a busy machine lets its signal through; and what a shell
starts in the background ignores Ctrl-C.
"""


def start(model: Path, output: Path, limit: int = LIMIT) -> subprocess.Popen[bytes]:
    command = f"{SLOW_DISK}from glm_portable.cli import main\n"
    command += f"main({['convert', str(model), str(output)]!r} + "
    command += f"['--quantization', 'w8a8', '--shard-size', '{limit / 1e9}'])"
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", command], cwd=root, stderr=subprocess.PIPE)


def finished(partial: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((partial / RECORD).read_text())["files"])
    except FileNotFoundError:
        return {}


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_goes_on_where_it_stopped(
    big: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    for attempt in range(5):  # on a busy machine it may have ended before the signal was sent
        output, partial = tmp_path / f"out{attempt}", tmp_path / f"out{attempt}.partial"
        process = start(big / "in", output)
        while len(finished(partial)) < 3 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(sign)
        _, said = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert not output.exists() and process.returncode == (-9 if sign == signal.SIGKILL else 130)
    if sign == signal.SIGINT:
        assert b"the same command goes on from here" in said
    done = finished(partial)
    kept = {name: (partial / name).stat().st_mtime_ns for name in done}
    conversion = Conversion(big / "in", output, "w8a8", shard_bytes=LIMIT)
    counted: list[int] = []
    assert 3 <= len(done) < len(conversion.files)
    assert conversion.run(counted.append) == len(done)
    assert sum(counted) == conversion.total_bytes
    assert {name: (output / name).stat().st_mtime_ns for name in done} == kept
    assert contents(output) == contents(big / "whole")


class Stop(Exception):
    pass


def interrupted(folder: Path, output: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that ends in an error at its file number `after`."""
    written = 0
    write = ShardWriter.write

    def failing(self: ShardWriter) -> None:
        nonlocal written
        written += 1
        if written > after:
            self.path.write_bytes(b"half")
            raise Stop
        write(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", failing)
        with pytest.raises(Stop):
            Conversion(folder, output, "w8a8", shard_bytes=LIMIT).run()


def test_files_that_changed_since_are_written_again(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    interrupted(big / "in", output, 4, monkeypatch)
    first, second, third, _ = (partial / name for name in sorted(finished(partial)))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    third.unlink()
    (partial / "model-00099-of-00100.safetensors").write_bytes(b"of no record")
    assert Conversion(big / "in", output, "w8a8", shard_bytes=LIMIT).run() == 1
    assert contents(output) == contents(big / "whole")


def test_another_conversions_rest_is_refused(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(big / "in", source)
    interrupted(source, output, 2, monkeypatch)
    begun = "was begun from other weights, with other options"
    with pytest.raises(UsageError, match=begun):
        Conversion(source, output, "w8a8", shard_bytes=2 * LIMIT).run()
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(UsageError, match=begun):
        Conversion(source, output, "w8a8", shard_bytes=LIMIT).run()
    for text in ("{", "[]", "{}", '{"files": 3}'):
        (tmp_path / "out.partial" / RECORD).write_text(text)
        with pytest.raises(UsageError, match=begun):
            Conversion(source, output, "w8a8", shard_bytes=LIMIT).run()
    (tmp_path / "out.partial" / RECORD).unlink()
    with pytest.raises(UsageError, match="out.partial is in the way and no conversion"):
        Conversion(source, output, "w8a8", shard_bytes=LIMIT).run()
    assert not output.exists()


def test_two_conversions_do_not_write_into_one_folder(big: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    conversion = Conversion(big / "in", output, "w8a8", shard_bytes=LIMIT)
    refused: list[str] = []

    def beside(count: int) -> None:
        if not refused:
            with pytest.raises(UsageError) as caught:
                Conversion(big / "in", output, "w8a8", shard_bytes=LIMIT).run()
            refused.append(str(caught.value))

    conversion.run(beside)
    assert "another process is writing" in refused[0]
    assert contents(output) == contents(big / "whole")


def test_no_room_is_told_before_anything_is_written(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free=100_000_000)
    monkeypatch.setattr("glm_portable.convert.run.shutil.disk_usage", lambda path: full)
    result = run(big / "in", tmp_path / "out", "--quantization", "w8a8")
    assert result.exit_code == 2 and "needs 0.1 GB, but its disk has 0.1 GB free" in result.stderr
    assert not any((tmp_path / "out.partial").iterdir())


def test_a_full_disk_is_one_sentence(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("glm_portable.convert.write.os.pwrite", full)
        result = run(big / "in", tmp_path / "out", "--quantization", "w8a8")
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "cannot be written: No space left on device; the same command goes on" in result.stderr
    assert run(big / "in", tmp_path / "out", "--quantization", "w8a8").exit_code == 0


def test_bad_input_is_refused_in_one_sentence(tmp_path: Path) -> None:
    source, slim = tmp_path / "in", tmp_path / "slim"
    write_checkpoint(source, CONFIG)
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(slim, CONFIG, tensors, tags)
    (tmp_path / "exists").mkdir()
    w8a8, bf16 = ("--quantization", "w8a8"), ("--quantization", "bf16")
    cases = [
        (source, source, w8a8, "is the checkpoint itself"),
        (source, source / ".." / "in", w8a8, "is the checkpoint itself"),
        (source, tmp_path / "exists", w8a8, "exists exists already"),
        (source, tmp_path / "out", bf16, "is bf16 already"),
        (slim, tmp_path / "out", w8a8, "is w8a8 already"),
        (tmp_path / "exists", tmp_path / "out", w8a8, "config.json is missing"),
        (tmp_path / "nothing", tmp_path / "out", w8a8, "There is no folder"),
        (source, tmp_path / "out", (*w8a8, "--shard-size", "0"), "files of 0 bytes"),
        (source, tmp_path / "out", ("--quantization", "w4a8"), "'w4a8' is not one of"),
        (source, tmp_path / "in" / "config.json" / "out", w8a8, "Not a directory"),
    ]
    for model, output, options, message in cases:
        result = run(model, output, *options)
        assert result.exit_code == 2, (message, result.output)
        assert message in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_lost_router_biases_come_from_the_original_or_stop_the_conversion(tmp_path: Path) -> None:
    tensors, tags = modelslim_tensors(CONFIG)
    write_modelslim(tmp_path / "lost", CONFIG, lose_router_biases(tensors), tags)
    write_modelslim(tmp_path / "whole", CONFIG, tensors, tags)
    original = random_tensors(CONFIG)
    write_files(tmp_path / "original", CONFIG, original)
    write_files(tmp_path / "plain", CONFIG, lose_router_biases(original))
    for model, target in (("lost", "bf16"), ("plain", "w8a8")):
        result = run(tmp_path / model, tmp_path / "out", "--quantization", target)
        assert result.exit_code == 2 and "of layers 1 to 2, " in result.stderr
    options = ("--quantization", "bf16", "--router-bias-from", str(tmp_path / "original"))
    assert run(tmp_path / "lost", tmp_path / "out", *options).exit_code == 0
    assert torch.equal(outputs(tmp_path / "out")[0], outputs(tmp_path / "whole", "bf16")[0])


def test_memory_stays_near_one_group_of_tensors(tmp_path: Path) -> None:
    """A few parts are in memory at a time, whatever the size of the whole."""
    config = CONFIG | {"hidden_size": 1024, "moe_intermediate_size": 512, "vocab_size": 8192}
    config |= {"n_routed_experts": 16, "torch_dtype": "float32"}
    tensors = write_checkpoint(tmp_path / "in", config)
    assert sum(t.nbytes for t in tensors.values()) > 250e6
    code = (
        "import sys; from pathlib import Path;"
        "from glm_portable.convert import Conversion; from tests.measure_load import memory;"
        "c = Conversion(Path(sys.argv[1]), Path(sys.argv[2]), 'w8a8');"
        "before = memory('VmRSS'); c.run(); print(memory('VmHWM') - before, c.total_bytes)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    growth, size = map(int, said.stdout.split())
    print(f"grew by {growth / 1e6:.0f} MB for a result of {size / 1e6:.0f} MB")
    assert growth < 150e6 < size
